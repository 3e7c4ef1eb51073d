package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
)

func podScenario() *Scenario {
	return &Scenario{
		Name:   "pod",
		Title:  "Two containers of a pod: what processes and memory the first brings, and what the second adds",
		Rounds: func(p *Params) int { return p.PodRounds },
		Setup:  setupPayload,
		Round:  func(ctx context.Context, r *Run, round int) error { return r.pod(ctx) },
	}
}

// podAnnotation names the pod of a container.
const podAnnotation = "io.containerd.runc.v2.group"

// pod starts two containers of one pod and measures after each.
func (r *Run) pod(ctx context.Context) (err error) {
	name := r.id("pod")
	before := map[int]bool{}
	for _, pid := range r.D.Helpers(nil) {
		before[pid] = true
	}
	inside := map[int]bool{}
	var boxes []*box
	defer func() {
		for i := len(boxes) - 1; i >= 0; i-- {
			err = errors.Join(err, boxes[i].kill(ctx))
		}
	}()
	last := 0
	var lastAnon int64
	for i, which := range []string{"first", "second"} {
		begin := time.Now()
		b, err := r.startInPod(ctx, fmt.Sprintf("%s-%d", name, i), name)
		if err != nil {
			return fmt.Errorf("%s container: %w", which, err)
		}
		r.addMs(which+" container started", time.Since(begin))
		boxes = append(boxes, b)
		inside[int(b.task.Pid())] = true
		time.Sleep(r.P.IdleBeforeMeasures)
		processes, anon := 0, int64(0)
		for _, pid := range r.D.Helpers(inside) {
			if before[pid] {
				continue
			}
			m, err := procfs.ReadMemory(pid)
			if err != nil {
				return err
			}
			processes++
			anon += m.Anon
		}
		r.add(which+" container: processes added", "count", report.Lower, float64(processes-last))
		r.add(which+" container: anon added", "KiB", report.Lower, float64(anon-lastAnon))
		last, lastAnon = processes, anon
	}
	return nil
}

// startInPod is start with the annotation.
func (r *Run) startInPod(ctx context.Context, id, pod string) (*box, error) {
	if err := r.prepareSnapshot(ctx, id); err != nil {
		return nil, err
	}
	spec, err := payloadSpec(r.Label, id, "sleep", "0")
	if err != nil {
		return nil, err
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[podAnnotation] = pod
	b := &box{id: id}
	b.c, err = r.D.Client.NewContainer(ctx, id,
		client.WithImageName(r.Payload.Ref),
		client.WithSnapshotter(r.D.Config.Snapshotter),
		withSnapshotKey(id),
		client.WithRuntime(r.D.Config.Runtime, r.runtimeOptions()),
		client.WithSpec(spec))
	if err != nil {
		return nil, err
	}
	if b.task, err = b.c.NewTask(ctx, cio.NullIO); err != nil {
		return nil, err
	}
	if b.exit, err = b.task.Wait(ctx); err != nil {
		return nil, err
	}
	return b, b.task.Start(ctx)
}
