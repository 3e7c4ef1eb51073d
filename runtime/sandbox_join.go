package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/runtime/record"
)

// sandboxFile, in the bundle of a task under a foreign shim, names the sandbox
// that it has joined.
const sandboxFile = "sandbox"

// host is a shim that is there already, and that a new task joins.
type host struct {
	intent record.Intent // of the sandbox, or of a task of the pod
	at     contact
}

// endpoint gives a contact as clients have it in task_api_address.
func (c contact) endpoint() string {
	address := c.Address
	if !strings.Contains(address, "://") {
		address = "unix://" + address
	}
	return c.Protocol + "+" + address
}

// place gives an address such that equal ones are the same place.
func (c contact) place() string {
	scheme, rest, ok := strings.Cut(c.Address, "://")
	switch {
	case !ok && filepath.IsAbs(c.Address):
		return "unix://" + filepath.Clean(c.Address)
	case !ok:
		return "unix://@" + c.Address // an abstract name
	case scheme == "unix" && filepath.IsAbs(rest):
		return "unix://" + filepath.Clean(rest)
	}
	return c.Address
}

// parseEndpoint reads a task_api_address: PROTOCOL+SCHEME://PLACE, of which the
// protocol may be missing. Its version is 0 where none is asked for.
func parseEndpoint(address string, version uint32) (contact, error) {
	bad := func(format string, args ...any) (contact, error) {
		return contact{}, fmt.Errorf("task API address %q: %s: %w", clip(address), fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	at := contact{Version: int(version), Address: address}
	if version != 0 && version != taskV2 && version != taskV3 {
		return bad("version %d of the task API, there are 2 and 3", version)
	}
	if protocol, rest, ok := strings.Cut(address, "+"); ok && (protocol == protocolTTRPC || protocol == protocolGRPC) {
		at.Protocol, at.Address = protocol, rest
	}
	if at.Protocol == protocolGRPC && version == taskV2 {
		return bad("there is no version 2 of the task API over grpc")
	}
	u, err := url.Parse(at.Address)
	if err != nil || u.Scheme == "" {
		return bad("no address such as ttrpc+unix:///PATH or grpc+vsock://CID:PORT")
	}
	if _, err := at.dialer(); err != nil {
		return bad("%v", err)
	}
	return at, nil
}

// hostAt finds the shim at a task_api_address.
//
// An address in a request is one that the daemon would connect to as root, and
// whose listener it would believe: in what it tells of pids, of exits, of its
// sandbox. So it has to be one that the daemon knows already: of a sandbox, or of
// a pod's shim, of the same namespace. Whoever may make those has told the daemon
// what to run, and it has started that itself.
func (t *Tasks) hostAt(ns, address string, version uint32) (*host, error) {
	want, err := parseEndpoint(address, version)
	if err != nil {
		return nil, err
	}
	found, err := t.knownAt(ns, want)
	if err != nil {
		return nil, err
	}
	at := found.at
	switch {
	case want.Protocol != "" && want.Protocol != at.Protocol:
		return nil, fmt.Errorf("task API address %q: the shim there speaks %s: %w", address, at.Protocol, errdefs.ErrInvalidArgument)
	case !found.intent.Foreign || want.Version == 0: // ours serves both, and is asked by version 3
	case want.Version == taskV2 && at.Protocol == protocolGRPC:
		return nil, fmt.Errorf("task API address %q: the shim there speaks grpc, of which there is no version 2: %w", address, errdefs.ErrInvalidArgument)
	default:
		found.at.Version = want.Version
	}
	return found, nil
}

// knownAt looks for a sandbox, or a task of a pod, at a place.
func (t *Tasks) knownAt(ns string, want contact) (*host, error) {
	t.mu.Lock()
	var all []*task
	for n, b := range t.boxes {
		if n.ns == ns {
			all = append(all, b.task)
		}
	}
	boxes := len(all)
	for n, k := range t.tasks {
		if n.ns == ns {
			all = append(all, k)
		}
	}
	t.mu.Unlock()
	for i, k := range all {
		k.mu.Lock()
		in, at, stand := k.intent, k.at, k.stand
		k.mu.Unlock()
		if at.place() != want.place() || stand != connected && stand != adopting {
			continue
		}
		if in.Group == "" {
			return nil, fmt.Errorf("task API address %q: the shim there is that of task %q alone, which is in no pod: %w",
				want.Address, k.id, errdefs.ErrFailedPrecondition)
		}
		if i < boxes {
			if err := t.admits(ns, k.id); err != nil {
				return nil, err
			}
		}
		return &host{in, at}, nil
	}
	return nil, fmt.Errorf("task API address %q: no sandbox of namespace %q serves there, and the daemon connects to no other place for a client; "+
		"make the sandbox first, or leave the address out: %w", want.Address, ns, errdefs.ErrFailedPrecondition)
}

// admits tells why a container can't join a sandbox, if so.
func (t *Tasks) admits(ns, id string) error {
	b, err := t.sandbox(ns, id)
	if err != nil {
		return err
	}
	if _, over := b.ended(); over {
		return fmt.Errorf("sandbox %q has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// hostOf finds the shim of another runtime that is the sandbox of a container's
// record, and speaks version 3. One of version 2 is found by its own start, and
// ours by the pod.
func (t *Tasks) hostOf(ns string, c *containers.Container) (*host, error) {
	if c.GetSandbox() == "" {
		return nil, nil // there is none to join
	}
	b, err := t.sandbox(ns, c.GetSandbox())
	if err != nil || !b.foreign() || b.contact().Version < taskV3 {
		return nil, nil // there is none to join
	}
	if err := t.admits(ns, b.id); err != nil {
		return nil, err
	}
	return &host{b.view().intent, b.contact()}, nil
}

// joining finds the shim that a new task is to join, where a Create names its
// address, in its own field or by the old spelling in the options, or the
// container's record its sandbox.
func (t *Tasks) joining(ns string, c *containers.Container, r *tasks.CreateTaskRequest, o *runc.Options) (*host, error) {
	if address := r.GetTaskApiAddress(); address != "" {
		return t.hostAt(ns, address, r.GetTaskApiVersion())
	}
	if address := o.GetTaskApiAddress(); address != "" {
		return t.hostAt(ns, address, o.GetTaskApiVersion())
	}
	return t.hostOf(ns, c)
}

// joinForeign connects a new task to a foreign shim that is there.
func (t *Tasks) joinForeign(ctx context.Context, k *task, h *host) (*conn, error) {
	if err := os.WriteFile(filepath.Join(k.dir, sandboxFile), []byte(h.intent.Group), 0o600); err != nil {
		return nil, err
	}
	c, _, err := t.meet(ctx, k, h.at)
	if errdefs.IsNotImplemented(err) && h.at.Version == taskV3 && h.at.Protocol == protocolTTRPC {
		c.close()
		c, _, err = t.meet(ctx, k, older(h.at))
	}
	return c, err
}

// errNoHost is why a task can't join: the shim that it is to join is dead.
var errNoHost = errors.New("the sandbox's shim has died")

// sandboxed tells whether the foreign shim of a task is a sandbox's, which says
// when it is to leave.
func (t *Tasks) sandboxed(k *task) bool {
	if !k.foreign() {
		return false
	}
	address := k.contact().Address
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.boxes {
		if b.task != k && b.serves(address) {
			return true
		}
	}
	return false
}

// serves tells whether a sandbox has its shim at an address.
func (b *box) serves(address string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at.Address != address {
		return false
	}
	switch b.stand {
	case creating, adopting:
		return true
	}
	return b.stand == connected && !b.conn.closed()
}
