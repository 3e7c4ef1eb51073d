package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/tasks/v1"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// goneError is why a call that needs the shim can't be served: there is none.
// While the container lives the call is Unavailable; once it has ended it is
// what any shim says of a stopped task, a plain error.
type goneError struct {
	task   *task
	act    string
	reason string
	lives  bool
}

func (e *goneError) Error() string {
	if e.lives {
		return fmt.Sprintf("%s: task %q runs on without its shim (%s): %v", e.act, e.task.id, e.reason, errdefs.ErrUnavailable)
	}
	return fmt.Sprintf("cannot %s: task %q is stopped (%s)", e.act, e.task.id, e.reason)
}

func (e *goneError) Unwrap() error {
	if e.lives {
		return errdefs.ErrUnavailable
	}
	return nil
}

// with finds a task and its connection for a call. The error of a task without a
// shim is a *goneError.
func (t *Tasks) with(ctx context.Context, ns, id, act string, do func(*task, *conn) error) (*task, error) {
	k, err := t.lookup(ns, id)
	if err != nil {
		return nil, err
	}
	v, err := k.settled(ctx, t.cfg.Deadlines.Connect)
	if err != nil {
		return k, err
	}
	if v.stand == connected {
		err = do(k, v.conn)
		if err == nil {
			return k, nil
		}
		err = fmt.Errorf("%s: task %q: %w", act, id, unnamed(id, err))
		if !errors.Is(err, errShimGone) {
			return k, err
		}
		// What became of the task is found out right now.
		v = k.after(ctx, v, t.cfg.Deadlines.Connect)
	}
	switch v.stand {
	case connected:
		return k, err // there again; who called decides whether to call again
	case lost, stopped:
		return k, &goneError{task: k, act: act, reason: v.reason, lives: v.exit == nil}
	case quarantined:
		return k, fmt.Errorf("%s: task %q is quarantined: %s: %w", act, id, v.reason, errdefs.ErrFailedPrecondition)
	}
	k.try()
	return k, fmt.Errorf("%s: task %q: %s: %w", act, id, v.reason, errdefs.ErrUnavailable)
}

// Start starts the container's own process, or a registered exec.
func (t *Tasks) Start(ctx context.Context, ns string, r *tasks.StartRequest) (*tasks.StartResponse, error) {
	var reply *shimtask.StartResponse
	if r.GetExecId() != "" { // init is in its cgroups since its create
		defer t.grace.Hold()()
	}
	_, err := t.with(ctx, ns, r.GetContainerId(), "start", func(k *task, c *conn) (err error) {
		limit := t.cfg.Deadlines.Start
		if r.GetExecId() == "" && k.view().intent.Checkpoint != "" {
			limit = t.cfg.Deadlines.Checkpoint
		}
		reply, err = call(ctx, c, "start the process", limit, c.shim.Start,
			&shimtask.StartRequest{Id: k.id, ExecId: r.GetExecId()})
		switch {
		case err != nil:
		case r.GetExecId() == "":
			t.restored(k, int(reply.GetPid()))
			t.noteStatus(k, apitask.Status_RUNNING)
		default:
			t.recordExec(k, r.GetExecId(), int(reply.GetPid()))
			t.holdExec(k, r.GetExecId())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &tasks.StartResponse{Pid: reply.GetPid()}, nil
}

// noteStatus keeps a status for the next daemon, which lists the task before its
// shim has answered.
func (t *Tasks) noteStatus(k *task, s apitask.Status) {
	k.setStatus(s)
	err := record.Write("runtime.status", k.dir, record.StatusFile, record.Status{Version: record.Version, Status: s.String()})
	if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
		t.cfg.Log.Warn("status not recorded", "namespace", k.ns, "id", k.id, "error", err)
	}
}

// killRequest is a Kill as the shim takes it.
func killRequest(id string, r *tasks.KillRequest) *shimtask.KillRequest {
	return &shimtask.KillRequest{Id: id, ExecId: r.GetExecId(), Signal: r.GetSignal(), All: r.GetAll()}
}

// startSoon is how long after an Exec its Start is expected, createSoon how long
// after a container's record its task.
const (
	startSoon  = 30 * time.Millisecond
	createSoon = 50 * time.Millisecond
)

// Expect says that a Create is likely to come soon. It does not wait.
func (t *Tasks) Expect() { t.grace.Expect(createSoon) }

// Exec registers a further process; Start runs it.
func (t *Tasks) Exec(ctx context.Context, ns string, r *tasks.ExecProcessRequest) error {
	if err := names.Identifier(r.GetExecId()); err != nil {
		return fmt.Errorf("exec id: %w", err)
	}
	t.grace.Expect(startSoon)
	_, err := t.with(ctx, ns, r.GetContainerId(), "exec", func(k *task, c *conn) error {
		_, err := call(ctx, c, "exec", t.cfg.Deadlines.Control, c.shim.Exec, &shimtask.ExecProcessRequest{
			Id: r.GetContainerId(), ExecId: r.GetExecId(), Terminal: r.GetTerminal(),
			Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Spec: r.GetSpec(),
		})
		if err == nil {
			t.addExec(k, r.GetExecId())
		}
		return err
	})
	return err
}

// ResizePty sets the size of a process's terminal.
func (t *Tasks) ResizePty(ctx context.Context, ns string, r *tasks.ResizePtyRequest) error {
	return t.empty(ctx, ns, r.GetContainerId(), "resize", func(c *conn, ctx context.Context) (*emptypb.Empty, error) {
		return c.shim.ResizePty(ctx, &shimtask.ResizePtyRequest{
			Id: r.GetContainerId(), ExecId: r.GetExecId(), Width: r.GetWidth(), Height: r.GetHeight(),
		})
	})
}

// CloseIO closes the shim's end of a process's stdin.
func (t *Tasks) CloseIO(ctx context.Context, ns string, r *tasks.CloseIORequest) error {
	return t.empty(ctx, ns, r.GetContainerId(), "close stdin", func(c *conn, ctx context.Context) (*emptypb.Empty, error) {
		return c.shim.CloseIO(ctx, &shimtask.CloseIORequest{
			Id: r.GetContainerId(), ExecId: r.GetExecId(), Stdin: r.GetStdin(),
		})
	})
}

// Pause freezes a running task.
func (t *Tasks) Pause(ctx context.Context, ns string, r *tasks.PauseTaskRequest) error {
	return t.freezing(ctx, ns, r.GetContainerId(), "pause", apitask.Status_PAUSED, func(c *conn, ctx context.Context) (*emptypb.Empty, error) {
		return c.shim.Pause(ctx, &shimtask.PauseRequest{Id: r.GetContainerId()})
	})
}

// Resume thaws a paused task.
func (t *Tasks) Resume(ctx context.Context, ns string, r *tasks.ResumeTaskRequest) error {
	return t.freezing(ctx, ns, r.GetContainerId(), "resume", apitask.Status_RUNNING, func(c *conn, ctx context.Context) (*emptypb.Empty, error) {
		return c.shim.Resume(ctx, &shimtask.ResumeRequest{Id: r.GetContainerId()})
	})
}

// Update changes a task's resources.
func (t *Tasks) Update(ctx context.Context, ns string, r *tasks.UpdateTaskRequest) error {
	return t.empty(ctx, ns, r.GetContainerId(), "update", func(c *conn, ctx context.Context) (*emptypb.Empty, error) {
		return c.shim.Update(ctx, &shimtask.UpdateTaskRequest{
			Id: r.GetContainerId(), Resources: r.GetResources(), Annotations: r.GetAnnotations(),
		})
	})
}

// emptyMethod is a method of the shim that answers nothing.
type emptyMethod func(c *conn, ctx context.Context) (*emptypb.Empty, error)

// empty makes a call that has no answer but its error.
func (t *Tasks) empty(ctx context.Context, ns, id, act string, method emptyMethod) error {
	_, err := t.with(ctx, ns, id, act, func(_ *task, c *conn) error { return t.control(ctx, c, act, method) })
	return err
}

// freezing is empty for a call that changes the status.
func (t *Tasks) freezing(ctx context.Context, ns, id, act string, then apitask.Status, method emptyMethod) error {
	_, err := t.with(ctx, ns, id, act, func(k *task, c *conn) error {
		err := t.control(ctx, c, act, method)
		if err == nil {
			t.noteStatus(k, then)
		}
		return err
	})
	return err
}

func (t *Tasks) control(ctx context.Context, c *conn, act string, method emptyMethod) error {
	bound := func(ctx context.Context, _ struct{}) (*emptypb.Empty, error) { return method(c, ctx) }
	_, err := call(ctx, c, act, t.cfg.Deadlines.Control, bound, struct{}{})
	return err
}
