package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// Kill sends a signal. A process that is gone is NotFound.
//
// It works without a shim, too, by the records of the task and its control group.
// A shim that is there has the call, except that SIGKILL does not depend on one
// that hangs: if it does not answer in time the daemon kills by itself. How the
// process ended is then still the shim's to tell, whose child it is; it is a
// zombie until then and its status is kept.
func (t *Tasks) Kill(ctx context.Context, ns string, r *tasks.KillRequest) error {
	kill := unix.Signal(r.GetSignal()) == unix.SIGKILL
	limit := t.cfg.Deadlines.Kill
	if kill {
		limit = min(limit, t.cfg.Deadlines.State)
	}
	k, err := t.with(ctx, ns, r.GetContainerId(), "kill", func(k *task, c *conn) error {
		_, err := call(ctx, c, "send the signal", limit, c.shim.Kill, killRequest(k.id, r))
		return err
	})
	var gone *goneError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &gone):
		return t.signal(ctx, k, r)
	case kill && k != nil && ctx.Err() == nil && k.view().stand.unanswered() && noAnswer(err):
		t.cfg.Log.Warn("the shim does not answer, the daemon kills by itself", "namespace", k.ns, "id", k.id, "exec", r.GetExecId(), "error", err)
		if direct := t.signal(ctx, k, r); direct != nil {
			return errors.Join(direct, err)
		}
		return nil
	}
	return err
}

// noAnswer tells whether an error is that of a shim that is silent, rather than
// what one said.
func noAnswer(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err)
}

// unanswered tells whether there may be a shim that merely does not answer.
func (s standing) unanswered() bool { return s == connected || s == adopting }

// signal sends a signal to a process of a task, or to all of them, past the
// shim.
func (t *Tasks) signal(ctx context.Context, k *task, r *tasks.KillRequest) error {
	err := t.send(ctx, k, r.GetExecId(), unix.Signal(r.GetSignal()), r.GetAll())
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrProcessDone):
		return fmt.Errorf("kill: task %q: process has ended: %w", k.id, errdefs.ErrNotFound)
	}
	return fmt.Errorf("kill: task %q, without its shim: %w", k.id, err)
}

func (t *Tasks) send(ctx context.Context, k *task, exec string, sig unix.Signal, all bool) error {
	handle, err := k.open(exec)
	if err != nil {
		return err
	}
	defer handle.Close()
	if !handle.Alive() {
		return os.ErrProcessDone
	}
	group, err := cgroup.Of(handle.PID())
	owns := err == nil
	if err != nil && !errors.Is(err, cgroup.ErrNone) {
		return errors.Join(err, handle.Signal(sig))
	}
	if !handle.Alive() { // whose group that was is not known
		return os.ErrProcessDone
	}
	if all && exec == "" && owns {
		if sig == unix.SIGKILL {
			ctx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Kill)
			defer cancel()
			return group.Kill(ctx)
		}
		_, err := group.Signal(sig)
		return err
	}
	if err := handle.Signal(sig); err != nil {
		return err
	}
	if all && exec == "" {
		k.signalExecs(sig)
	}
	if sig == unix.SIGKILL && owns {
		// What a cgroup of version 1 has frozen does not die. Nobody could resume
		// it but the shim, and it was to end.
		return group.Thaw()
	}
	return nil
}

// open makes a handle on a process of the task by its record. The caller closes
// it.
func (k *task) open(exec string) (*sys.Process, error) {
	dir := k.dir
	if exec != "" {
		dir = execDir(k.dir, exec)
	}
	started, err := readRecord[record.Started](dir, record.StartedFile)
	switch {
	case err != nil:
		return nil, err
	case started == nil && exec != "":
		return nil, fmt.Errorf("exec %q: %w", exec, errdefs.ErrNotFound)
	case started == nil:
		return nil, fmt.Errorf("no record of its process: %w", errdefs.ErrUnavailable)
	}
	if started.StartTime == 0 && exec == "" && k.foreign() {
		return nil, fmt.Errorf("its process is not one of this machine: %w", errdefs.ErrUnavailable)
	}
	handle, err := sys.OpenProcess(started.PID)
	if err != nil {
		return nil, err
	}
	if handle.StartTime() != started.StartTime { // another one has the pid now
		return nil, errors.Join(os.ErrProcessDone, handle.Close())
	}
	return handle, nil
}

// signalExecs sends a signal to the execs of a container that has no control
// group of its own, as far as they are on record.
func (k *task) signalExecs(sig unix.Signal) {
	for _, exec := range execRecords(k.dir) {
		if handle, err := k.open(exec); err == nil {
			_ = handle.Signal(sig) // it may have ended
			_ = handle.Close()
		}
	}
}
