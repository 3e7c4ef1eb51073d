package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// pidFileName is where the runtime writes the pid of a process, in its directory.
const pidFileName = "runtime.pid"

// Create mounts the root file system and has the runtime make the container;
// init then waits for Start. It does all of it or nothing.
func (s *Shim) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	c, paths, err := s.prepare(r)
	if err != nil {
		return nil, err
	}
	if err := s.add(c); err != nil {
		return nil, err
	}
	if err := s.claim(c); err != nil {
		s.remove(c)
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	s.comeHome(c.bundle)
	p, err := c.create(ctx, r.Rootfs, paths)
	if err != nil {
		s.remove(c)
		return nil, err
	}
	c.mu.Lock()
	c.init = p
	s.config.Publish(topicCreate, &apievents.TaskCreate{
		ContainerId: c.id,
		Bundle:      c.bundle,
		Rootfs:      r.Rootfs,
		Io:          &apievents.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Checkpoint:  r.Checkpoint,
		Pid:         uint32(p.pid),
	})
	c.mu.Unlock()
	s.config.Log.Info("task created", "task", c.id, "pid", p.pid)
	if c.source == nil {
		s.watch(p)
	}
	return &task.CreateTaskResponse{Pid: uint32(p.pid)}, nil
}

// claim makes this shim the one that supervises a container's bundle.
func (s *Shim) claim(c *container) (err error) {
	if !s.config.Claim || c.bundle == s.config.Claimed {
		return nil
	}
	c.claim, err = Claim(c.bundle)
	return err
}

// prepare checks a request and makes the container of it, without effects.
func (s *Shim) prepare(r *task.CreateTaskRequest) (*container, streamPaths, error) {
	paths := streamPaths{terminal: r.Terminal, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr}
	if err := names.Identifier(r.Id); err != nil {
		return nil, paths, err
	}
	if !filepath.IsAbs(r.Bundle) {
		return nil, paths, fmt.Errorf("task %q: bundle %q is not an absolute path: %w", r.Id, r.Bundle, errdefs.ErrInvalidArgument)
	}
	options, err := runcOptions(r.Options)
	if err != nil {
		return nil, paths, fmt.Errorf("task %q: %w", r.Id, err)
	}
	how := runtimeOf(s.config.Namespace, options.BinaryName, options.Root, options.SystemdCgroup)
	from, err := sourceOf(r.Checkpoint, options)
	if err != nil {
		return nil, paths, fmt.Errorf("task %q: %w", r.Id, err)
	}
	life, end := context.WithCancel(context.Background())
	return &container{
		life:      life,
		end:       end,
		shim:      s,
		id:        r.Id,
		bundle:    r.Bundle,
		how:       how,
		runtime:   s.config.Runtime(how, r.Bundle),
		owner:     owner{options.IoUid, options.IoGid},
		noPivot:   options.NoPivotRoot,
		noKeyring: options.NoNewKeyring,
		shimGroup: options.ShimCgroup,
		source:    from,
		mounted:   len(r.Rootfs) > 0,
		lane:      make(chan struct{}, 1),
		execs:     map[string]*process{},
	}, paths, nil
}

// runcOptions reads the runtime options of a request. Other types are not for
// this shim.
func runcOptions(packed *anypb.Any) (*runc.Options, error) {
	options := &runc.Options{}
	if packed.GetTypeUrl() == "" && len(packed.GetValue()) == 0 {
		return options, nil
	}
	url := packed.GetTypeUrl()
	if name := url[strings.LastIndexByte(url, '/')+1:]; name != string(options.ProtoReflect().Descriptor().FullName()) {
		return nil, fmt.Errorf("runtime options are a %q, not a containerd.runc.v1.Options", name)
	}
	if err := proto.Unmarshal(packed.Value, options); err != nil {
		return nil, fmt.Errorf("runtime options: %w", err)
	}
	return options, nil
}

// create does what prepare has checked, and undoes it if it fails.
func (c *container) create(ctx context.Context, rootfs []*types.Mount, paths streamPaths) (_ *process, err error) {
	ctx, cancel := c.shim.begin(ctx)
	defer cancel()
	var undo []func(context.Context) error
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := cleaning(ctx)
		defer cancel()
		for i := len(undo) - 1; i >= 0; i-- {
			if uerr := undo[i](ctx); uerr != nil {
				err = fmt.Errorf("%w; and undoing it: %v", err, uerr) // which must not give the failure its kind
			}
		}
		c.shim.sweep()
	}()
	if err := c.record(); err != nil {
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	c.placeShim()
	if c.mounted {
		target := filepath.Join(c.bundle, record.RootfsDir)
		if err := c.shim.config.Mounter.Mount(mounts(rootfs), target); err != nil {
			return nil, fmt.Errorf("task %q: mount rootfs: %w", c.id, err)
		}
		undo = append(undo, func(context.Context) error { return c.shim.config.Mounter.Unmount(target) })
	}
	// Not a named result: the steps that undo use it after a return of nil.
	p := newProcess(c, "", c.bundle, paths)
	if p.streams, err = openStreams(p.place(), paths); err != nil {
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	undo = append(undo, func(context.Context) error { p.streams.close(); return nil })
	if c.source != nil {
		p.state = FromCheckpoint
		return p, c.await(p)
	}
	pidFile := filepath.Join(p.dir, pidFileName)
	undo = append(undo, func(ctx context.Context) error { return c.discard(ctx, p, pidFile) })
	err = c.shim.call(func() error {
		return c.runtime.Create(ctx, c.id, oci.CreateOptions{
			Bundle:        c.bundle,
			PIDFile:       pidFile,
			ConsoleSocket: p.streams.socket(),
			NoPivot:       c.noPivot,
			NoNewKeyring:  c.noKeyring,
			Stdio:         p.streams.child,
		})
	}, func() error { return p.adopt(pidFile) })
	if err != nil {
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	if err = p.streams.attach(); err != nil {
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	if c.private, err = sys.InitOfNamespace(p.pid); err != nil {
		return nil, fmt.Errorf("task %q: %w", c.id, err)
	}
	c.watchOOM(p.pid)
	p.streams.start()
	return p, nil
}

// record writes how the runtime is called, and removes what an earlier task left
// in the bundle, whose exit must not be taken for this one's.
func (c *container) record() error {
	for _, name := range []string{record.ExitFile, record.StartedFile, pidFileName} {
		if err := os.Remove(filepath.Join(c.bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return record.Write("shim.runtime", c.bundle, record.RuntimeFile, c.how)
}

// discard removes what the runtime made before Create failed.
func (c *container) discard(ctx context.Context, p *process, pidFile string) error {
	err := c.runtime.Delete(ctx, c.id, true)
	var missing *oci.MissingError
	if errors.As(err, &missing) {
		err = nil // nothing was made, and Create says why
	}
	if p.handle != nil {
		err = errors.Join(err, c.shim.end(ctx, p.handle))
	}
	if gerr := removeGroups(c.bundle); gerr != nil {
		err = errors.Join(err, gerr)
	}
	for _, name := range []string{pidFile, filepath.Join(p.dir, record.StartedFile)} {
		if rerr := os.Remove(name); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// mounts turns the wire's mounts into ours.
func mounts(list []*types.Mount) []mount.Mount {
	out := make([]mount.Mount, len(list))
	for i, m := range list {
		out[i] = mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}

// readPID reads a file in which the runtime wrote a pid.
func readPID(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("the OCI runtime wrote no pid: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, fmt.Errorf("the OCI runtime wrote no pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the OCI runtime wrote %q as pid", data)
	}
	return pid, nil
}
