package scenario

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/daemon"
	"github.com/berthd/berth/bench/internal/ociimage"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// box is a container with its task.
type box struct {
	id   string
	c    client.Container
	task client.Task
	exit <-chan client.ExitStatus
}

// payloadSpec is the default OCI spec around one payload command.
func payloadSpec(label, id string, args ...string) (*oci.Spec, error) {
	ctx := namespaces.WithNamespace(context.Background(), daemon.Namespace)
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: id},
		oci.WithDefaultPathEnv, oci.WithProcessArgs(append([]string{"/payload"}, args...)...))
	if err != nil {
		return nil, err
	}
	s.Linux.CgroupsPath = filepath.Join(daemon.CgroupParent(label), id)
	return s, nil
}

// runtimeOptions are what the daemon's description asks to send.
func (r *Run) runtimeOptions() any {
	o := r.D.Config.RuntimeOptions
	if !o.Send {
		return nil
	}
	return &options.Options{BinaryName: o.BinaryName, Root: o.Root, SystemdCgroup: o.SystemdCgroup}
}

func (r *Run) snapshotter() snapshots.Snapshotter {
	return r.D.Client.SnapshotService(r.D.Config.Snapshotter)
}

// prepareSnapshot makes a writable snapshot of the payload image. The label
// keeps it from garbage collection until a container refers to it.
func (r *Run) prepareSnapshot(ctx context.Context, id string) error {
	_, err := r.snapshotter().Prepare(ctx, id, r.Payload.ChainID.String(), rooted())
	return err
}

func rooted() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Unix(1_700_000_000, 0).UTC().Format(time.RFC3339)})
}

// createContainer creates the container record for a prepared snapshot.
func (r *Run) createContainer(ctx context.Context, id string, args ...string) (client.Container, error) {
	spec, err := payloadSpec(r.Label, id, args...)
	if err != nil {
		return nil, err
	}
	return r.D.Client.NewContainer(ctx, id,
		client.WithImageName(r.Payload.Ref),
		client.WithSnapshotter(r.D.Config.Snapshotter),
		withSnapshotKey(id),
		client.WithRuntime(r.D.Config.Runtime, r.runtimeOptions()),
		client.WithSpec(spec))
}

func withSnapshotKey(key string) client.NewContainerOpts {
	return func(_ context.Context, _ *client.Client, c *containers.Container) error {
		c.SnapshotKey = key
		return nil
	}
}

// start brings a container from nothing to running.
func (r *Run) start(ctx context.Context, id string, io cio.Creator, args ...string) (*box, error) {
	if err := r.prepareSnapshot(ctx, id); err != nil {
		return nil, fmt.Errorf("snapshot prepare: %w", err)
	}
	b := &box{id: id}
	var err error
	if b.c, err = r.createContainer(ctx, id, args...); err != nil {
		return nil, fmt.Errorf("container create: %w", err)
	}
	if b.task, err = b.c.NewTask(ctx, io); err != nil {
		return nil, fmt.Errorf("task create: %w", err)
	}
	if b.exit, err = b.task.Wait(ctx); err != nil {
		return nil, fmt.Errorf("task wait: %w", err)
	}
	if err := b.task.Start(ctx); err != nil {
		return nil, fmt.Errorf("task start: %w", err)
	}
	return b, nil
}

// waitExit waits for the exit and checks the code.
func (b *box) waitExit(ctx context.Context, want uint32) error {
	select {
	case st := <-b.exit:
		if err := st.Error(); err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if st.ExitCode() != want {
			return fmt.Errorf("exit code %d, not %d", st.ExitCode(), want)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no exit of %s: %w", b.id, ctx.Err())
	}
}

// remove deletes the task, the container and its snapshot.
func (b *box) remove(ctx context.Context) error {
	if _, err := b.task.Delete(ctx); err != nil {
		return fmt.Errorf("task delete: %w", err)
	}
	if err := b.c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		return fmt.Errorf("container delete: %w", err)
	}
	return nil
}

// kill ends a running container and removes it.
func (b *box) kill(ctx context.Context) error {
	if err := b.task.Kill(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("task kill: %w", err)
	}
	select {
	case <-b.exit:
	case <-ctx.Done():
		return ctx.Err()
	}
	return b.remove(ctx)
}

// startMany starts n sleepers, four at a time.
func (r *Run) startMany(ctx context.Context, n int, args ...string) ([]*box, error) {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = r.id("many")
	}
	boxes := make([]*box, n)
	err := parallel(4, n, func(i int) error {
		b, err := r.start(ctx, ids[i], cio.NullIO, args...)
		boxes[i] = b
		return err
	})
	return boxes, err
}

func killMany(ctx context.Context, boxes []*box) error {
	return parallel(4, len(boxes), func(i int) error { return boxes[i].kill(ctx) })
}

// parallel runs f(0..n-1) with a number of workers and returns the first error
// of each worker.
func parallel(workers, n int, f func(i int) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
		errs []error
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	for range workers {
		wg.Go(func() {
			for i := take(); i < n; i = take() {
				if err := f(i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// setupPayload imports and unpacks the payload image.
func setupPayload(ctx context.Context, r *Run) error {
	return r.importAndUnpack(ctx, r.Payload)
}

func (r *Run) importAndUnpack(ctx context.Context, img *ociimage.Image) error {
	if err := r.importImage(ctx, img); err != nil {
		return err
	}
	return r.unpackImage(ctx, img)
}
