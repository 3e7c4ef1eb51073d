package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	apievents "github.com/berthd/berth/api/events"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// specFileName is the runtime-spec Process of an exec, in its directory.
const specFileName = "process.json"

// register takes an exec into the table. Start runs it.
func (c *container) register(r *task.ExecProcessRequest) error {
	if err := names.Identifier(r.ExecId); err != nil {
		return err
	}
	if !json.Valid(r.GetSpec().GetValue()) {
		return fmt.Errorf("exec %q of task %q: process spec is no JSON: %w", r.ExecId, c.id, errdefs.ErrInvalidArgument)
	}
	paths := streamPaths{terminal: r.Terminal, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr}
	p := newProcess(c, r.ExecId, filepath.Join(c.bundle, record.ExecsDir, r.ExecId), paths)
	p.spec = r.Spec.Value

	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.init.permit(Exec); err != nil {
		return err
	}
	if _, ok := c.execs[p.id]; ok {
		return fmt.Errorf("%s: %w", p.name(), errdefs.ErrAlreadyExists)
	}
	c.execs[p.id] = p
	c.shim.config.Publish(topicExecAdded, &apievents.TaskExecAdded{ContainerId: c.id, ExecId: p.id})
	return nil
}

// canRunExec tells whether the task is in a state in which an exec may be
// started. Callers hold mu.
func (c *container) canRunExec() error {
	switch {
	case c.ended:
		return fmt.Errorf("init has exited: %w", errdefs.ErrFailedPrecondition)
	case c.init.state == Paused, c.init.state == Pausing:
		return fmt.Errorf("cannot start an exec in a %s container", c.init.state)
	}
	return nil
}

// startExec has the runtime run an exec.
func (c *container) startExec(ctx context.Context, p *process) (pid int, err error) {
	end, err := c.beginStart(p)
	if err != nil {
		return 0, err
	}
	ctx, done := c.whileAlive(ctx)
	defer done()
	err = c.run(ctx, p)
	end(err, topicExecStarted, &apievents.TaskExecStarted{ContainerId: c.id, ExecId: p.id, Pid: uint32(p.pid)})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.name(), err)
	}
	c.shim.config.Log.Debug("exec started", "task", c.id, "exec", p.id, "pid", p.pid)
	c.shim.watch(p)
	return p.pid, nil
}

// run makes the process of an exec, or leaves nothing of it.
func (c *container) run(ctx context.Context, p *process) (err error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	streams, err := openStreams(p.place(), p.paths)
	if err != nil {
		return errors.Join(err, os.RemoveAll(p.dir))
	}
	defer func() {
		if err != nil {
			streams.close()
			err = errors.Join(err, p.kill(ctx), os.RemoveAll(p.dir))
		}
	}()
	specFile, pidFile := filepath.Join(p.dir, specFileName), filepath.Join(p.dir, pidFileName)
	if err := os.WriteFile(specFile, p.spec, 0o600); err != nil {
		return err
	}
	err = c.shim.call(func() error {
		return c.runtime.Exec(ctx, c.id, oci.ExecOptions{
			Process:       specFile,
			PIDFile:       pidFile,
			ConsoleSocket: streams.socket(),
			Stdio:         streams.child,
		})
	}, func() error { return p.adopt(pidFile) })
	if err == nil {
		err = streams.attach()
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	p.streams, p.spec = streams, nil
	if p.noInput {
		streams.closeStdin()
	}
	c.mu.Unlock()
	streams.start()
	return nil
}

// kill ends a process whose Start failed after the runtime had made it: one
// that was adopted, or whose pid the runtime wrote before it was itself killed.
func (p *process) kill(ctx context.Context) error {
	p.c.mu.Lock()
	handle := p.handle
	p.pid, p.handle = 0, nil
	p.c.mu.Unlock()
	if handle == nil {
		pid, err := readPID(filepath.Join(p.dir, pidFileName))
		if err != nil || !isChild(pid) {
			return nil
		}
		if handle, err = sys.OpenProcess(pid); err != nil {
			return nil
		}
	}
	return p.c.shim.end(ctx, handle)
}
