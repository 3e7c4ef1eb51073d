package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// A task from a checkpoint has mounts and streams from Create on, but no process:
// its Start has the runtime restore one. Until then its record has the pid 0, so
// that the daemon knows that Create came to its end.

// criuDirPattern names the directory for criu's log, in the bundle. It goes with
// the call.
const criuDirPattern = "criu-"

// maxPending bounds how many updates wait for a restore.
const maxPending = 16

// source is what a task is restored from.
type source struct {
	images string // directory with criu's files
	work   string // directory for criu's log; "" makes one
}

// sourceOf reads from where a Create wants a task to be restored; nil: it does not.
func sourceOf(checkpoint string, options *runc.Options) (*source, error) {
	if checkpoint == "" {
		return nil, nil
	}
	for _, path := range []string{checkpoint, options.CriuWorkPath} {
		if path != "" && !filepath.IsAbs(path) {
			return nil, fmt.Errorf("restore: %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	info, err := os.Stat(checkpoint)
	if err != nil {
		return nil, fmt.Errorf("restore: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("restore: %s is not a directory of images: %w", checkpoint, errdefs.ErrInvalidArgument)
	}
	return &source{images: checkpoint, work: options.CriuWorkPath}, nil
}

// Checkpoint dumps the processes of a task to files.
func (s *Shim) Checkpoint(ctx context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	options, err := checkpointOptions(r.Options)
	if err != nil {
		return nil, fmt.Errorf("task %q: %w", r.Id, err)
	}
	path := r.Path
	if path == "" {
		path = options.ImagePath
	}
	if !filepath.IsAbs(path) || options.WorkPath != "" && !filepath.IsAbs(options.WorkPath) {
		return nil, fmt.Errorf("task %q: checkpoint to %q, work path %q: the paths have to be absolute: %w",
			r.Id, path, options.WorkPath, errdefs.ErrInvalidArgument)
	}
	return s.change(ctx, r.Id, func(c *container, ctx context.Context) error { return c.checkpoint(ctx, path, options) })
}

// checkpointOptions reads the options of a Checkpoint.
func checkpointOptions(packed *anypb.Any) (*runc.CheckpointOptions, error) {
	options := &runc.CheckpointOptions{}
	if packed.GetTypeUrl() == "" && len(packed.GetValue()) == 0 {
		return options, nil
	}
	url := packed.GetTypeUrl()
	if name := url[strings.LastIndexByte(url, '/')+1:]; name != string(options.ProtoReflect().Descriptor().FullName()) {
		return nil, fmt.Errorf("checkpoint options are a %q, not a containerd.runc.v1.CheckpointOptions", name)
	}
	if err := proto.Unmarshal(packed.Value, options); err != nil {
		return nil, fmt.Errorf("checkpoint options: %w", err)
	}
	for _, name := range append([]string{options.CgroupsMode}, options.EmptyNamespaces...) {
		if strings.HasPrefix(name, "-") {
			return nil, fmt.Errorf("checkpoint options: %q: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return options, nil
}

// checkpoint has the runtime dump the container.
func (c *container) checkpoint(ctx context.Context, images string, o *runc.CheckpointOptions) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	p := c.init
	if err := c.permit(p, Checkpoint); err != nil {
		return err
	}
	if err := os.MkdirAll(images, 0o700); err != nil {
		return fmt.Errorf("%s: checkpoint: %w", p.name(), err)
	}
	work, done, err := c.criuDir(o.WorkPath)
	if err != nil {
		return fmt.Errorf("%s: checkpoint: %w", p.name(), err)
	}
	defer done()
	needs := record.Criu{
		Version: record.Version, OpenTCP: o.OpenTcp, ExternalSockets: o.ExternalUnixSockets, Terminal: o.Terminal,
		FileLocks: o.FileLocks, EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
	}
	// Ahead of the dump: with Exit, what is dumped is gone afterwards.
	if err := record.Write("shim.criu", images, record.CriuFile, needs); err != nil {
		return fmt.Errorf("%s: checkpoint: %w", p.name(), err)
	}
	paused := c.report(p).state == Paused
	err = c.shim.call(func() error {
		return c.runtime.Checkpoint(ctx, c.id, oci.CheckpointOptions{Images: images, Work: work, Exit: o.Exit, Criu: criuOptions(needs)})
	}, nil)
	if err != nil {
		if ctx.Err() != nil && !paused {
			c.unfreeze(ctx)
		}
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	c.shim.config.Log.Info("task checkpointed", "task", c.id, "images", images, "exit", o.Exit)
	return nil
}

// unfreeze lets a container go on that a dump which was cut off may have left
// frozen. That the runtime refuses means that it is not.
func (c *container) unfreeze(ctx context.Context) {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	if err := c.shim.call(func() error { return c.runtime.Resume(ctx, c.id) }, nil); err != nil {
		c.shim.config.Log.Debug("container not resumed after a dump that was cut off", "task", c.id, "error", err)
	}
}

// criuDir gives the directory for criu's log: that which was asked for, or one in
// the bundle, which done removes.
func (c *container) criuDir(given string) (dir string, done func(), err error) {
	if given != "" {
		return given, func() {}, os.MkdirAll(given, 0o700)
	}
	dir, err = os.MkdirTemp(c.bundle, criuDirPattern)
	if err != nil {
		return "", nil, err
	}
	// What stays is removed with the bundle.
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

func criuOptions(r record.Criu) oci.CriuOptions {
	return oci.CriuOptions{
		OpenTCP: r.OpenTCP, ExternalSockets: r.ExternalSockets, Terminal: r.Terminal, FileLocks: r.FileLocks,
		EmptyNamespaces: r.EmptyNamespaces, CgroupsMode: r.CgroupsMode,
	}
}

// await records that a task waits for the Start that restores it.
func (c *container) await(p *process) error {
	started := record.Started{Version: record.Version}
	if err := record.Write("shim.started", p.dir, record.StartedFile, started); err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	return nil
}

// restore has the runtime make the container of its checkpoint, or leaves all as
// it was. Needs the lane.
func (c *container) restore(ctx context.Context, p *process) (err error) {
	var needs record.Criu // none: another program's dump, of the plain case
	if err := record.Read(c.source.images, record.CriuFile, &needs); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore: %w", err)
	}
	work, done, err := c.criuDir(c.source.work)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer done()
	if err := directCriu(c.bundle, c.how.SystemdCgroup); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	pidFile := filepath.Join(p.dir, pidFileName)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.unrestore(ctx, p, pidFile))
		}
	}()
	err = c.shim.call(func() error {
		return c.runtime.Restore(ctx, c.id, oci.RestoreOptions{
			Bundle: c.bundle, PIDFile: pidFile, ConsoleSocket: p.streams.socket(), NoPivot: c.noPivot,
			Images: c.source.images, Work: work, Criu: criuOptions(needs), Stdio: p.streams.child,
		})
	}, func() error { return p.adopt(pidFile) })
	if err != nil {
		return err
	}
	for _, resources := range c.pending {
		if err := c.shim.call(func() error { return c.runtime.Update(ctx, c.id, resources) }, nil); err != nil {
			return fmt.Errorf("limits that were set before the restore: %w", err)
		}
	}
	private, err := sys.InitOfNamespace(p.pid)
	if err != nil {
		return err
	}
	c.private = private
	if err := p.streams.attach(); err != nil {
		return err
	}
	c.pending = nil
	c.watchOOM(p.pid)
	p.streams.start()
	return nil
}

// unrestore removes what a restore that failed has made.
func (c *container) unrestore(ctx context.Context, p *process, pidFile string) error {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	err := c.discard(ctx, p, pidFile)
	c.mu.Lock()
	p.pid, p.handle = 0, nil
	c.mu.Unlock()
	return errors.Join(err, c.await(p))
}

// updateLater keeps limits for the restore. Needs the lane.
func (c *container) updateLater(resources []byte) error {
	if len(c.pending) == maxPending {
		return fmt.Errorf("%s: %d updates wait for its restore already: start it first", c.init.name(), maxPending)
	}
	c.pending = append(c.pending, resources)
	return nil
}

// dropUnrestored gives up what a task has that was never restored.
func (c *container) dropUnrestored(p *process) {
	p.streams.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	p.exit.ExitedAt = time.Now().UTC()
}
