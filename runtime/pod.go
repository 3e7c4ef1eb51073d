package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/runtime/record"
)

// groupAnnotations name the pod of a container in its spec: the first that is
// there counts. Containers of a pod share a shim.
var groupAnnotations = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

// groupOf tells which pod a container belongs to; "" is none.
func groupOf(c *containers.Container) (string, error) {
	config := c.GetSpec().GetValue()
	named := false
	for _, name := range groupAnnotations {
		named = named || bytes.Contains(config, []byte(name))
	}
	if named { // mostly it is not, and a spec is long
		var spec struct {
			Annotations map[string]string `json:"annotations"`
		}
		if err := json.Unmarshal(config, &spec); err != nil {
			return "", fmt.Errorf("spec of container %q: %w", c.GetId(), plain(err))
		}
		for _, name := range groupAnnotations {
			if group := spec.Annotations[name]; group != "" {
				return group, nil
			}
		}
	}
	return c.GetSandbox(), nil
}

// socketOf is where the shim of a task of ours listens: that of its pod, if it
// has one.
func (t *Tasks) socketOf(in record.Intent) string {
	if in.Group != "" && !in.Foreign {
		return groupSocket(t.cfg.State, in.Namespace, in.Group)
	}
	return socketPath(t.cfg.State, in.Namespace, in.ID)
}

// groupSocket is where the shim of a pod listens. No task has a name with a
// slash, so its socket is none of a task's.
func groupSocket(state, ns, group string) string { return socketPath(state, ns, "pod/"+group) }

// settle sets where the task's shim listens, before anybody else sees the task.
func (k *task) settle(socket string) { k.socket, k.at = socket, ownContact(socket) }

// pods serializes what begins and ends the shims of pods.
type pods struct {
	mu    sync.Mutex // guards lanes
	lanes map[string]*podLane
}

// podLane is held while a task of the pod joins its shim, or leaves it.
type podLane struct {
	lane
	users int
}

// enter takes the lane of the pod whose socket that is.
func (p *pods) enter(ctx context.Context, socket string) (leave func(), err error) {
	p.mu.Lock()
	l := p.lanes[socket]
	if l == nil {
		if p.lanes == nil {
			p.lanes = map[string]*podLane{}
		}
		l = &podLane{lane: newLane()}
		p.lanes[socket] = l
	}
	l.users++
	p.mu.Unlock()
	release := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(p.lanes, socket)
		}
	}
	if err := l.lane.enter(ctx); err != nil {
		release()
		return nil, err
	}
	return func() { l.lane.leave(); release() }, nil
}

// alone is the leaving of a task that is in no pod.
func alone() {}

// enterPod takes the lane of a task's pod, if it is in one. Where the pod's shim is
// a foreign one, that finds its kind by itself, but not one on its way out.
func (t *Tasks) enterPod(ctx context.Context, k *task) (leave func(), err error) {
	k.mu.Lock()
	in := k.intent
	k.mu.Unlock()
	if in.Group == "" {
		return alone, nil
	}
	key := k.socket
	if in.Foreign {
		key = in.Binary + " " + groupSocket(t.cfg.State, in.Namespace, in.Group)
	}
	leave, err = t.pods.enter(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("waiting for another task of the pod %q: %w", in.Group, err)
	}
	return leave, nil
}

// joinShim connects a new task to the shim of its pod. It is nil if there is
// none. Needs the pod's lane.
func (t *Tasks) joinShim(ctx context.Context, k *task) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Connect)
	defer cancel()
	c, err := t.dial(ctx, k.contact(), false)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the shim of the pod: %w", err)
	}
	shim, ok := t.podShim(k)
	if !ok {
		c.close()
		return nil, errors.New("somebody listens on the socket of the pod, and no task knows who")
	}
	k.mu.Lock()
	k.shim = shim
	k.mu.Unlock()
	if err := record.Write("runtime.shim", k.dir, record.ShimFile, shim); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// podShim finds the shim of a task's pod in the other tasks of it, and its sandbox.
func (t *Tasks) podShim(k *task) (record.Shim, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Collect(maps.Values(t.tasks))
	for _, b := range t.boxes {
		all = append(all, b.task)
	}
	for _, other := range all {
		if other == k || other.socket != k.socket {
			continue
		}
		other.mu.Lock()
		shim := other.shim
		other.mu.Unlock()
		if lifeOf(shim.PID, shim.StartTime) == alive {
			return shim, true
		}
	}
	return record.Shim{}, false
}
