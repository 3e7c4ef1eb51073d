package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	tasktypes "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/protobuf"
)

// The methods of the task API. Create is in create.go.

// Start runs the program of init, or an exec.
func (s *Shim) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	var pid int
	if p.isInit() {
		pid, err = c.startInit(ctx)
	} else {
		pid, err = c.startExec(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	return &task.StartResponse{Pid: uint32(pid)}, nil
}

// Delete removes a task or an exec that does not run.
func (s *Shim) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	var st report
	if p.isInit() {
		st, err = c.delete(ctx)
	} else {
		st, err = c.deleteExec(p)
	}
	if err != nil {
		return nil, err
	}
	return &task.DeleteResponse{
		Pid:        uint32(st.pid),
		ExitStatus: st.exit.Status,
		ExitedAt:   protobuf.Timestamp(st.exit.ExitedAt),
	}, nil
}

// wireStates are the states as the API has them.
var wireStates = [numStates]tasktypes.Status{
	Created: tasktypes.Status_CREATED,

	FromCheckpoint: tasktypes.Status_CREATED,

	Running: tasktypes.Status_RUNNING,
	Pausing: tasktypes.Status_PAUSING,
	Paused:  tasktypes.Status_PAUSED,
	Stopped: tasktypes.Status_STOPPED,
	Deleted: tasktypes.Status_STOPPED,
}

// State tells about a task or an exec.
func (s *Shim) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	st := c.report(p)
	return &task.StateResponse{
		Id:         p.eventID(),
		Bundle:     c.bundle,
		Pid:        uint32(st.pid),
		Status:     wireStates[st.state],
		Stdin:      p.paths.stdin,
		Stdout:     p.paths.stdout,
		Stderr:     p.paths.stderr,
		Terminal:   p.paths.terminal,
		ExitStatus: st.exit.Status,
		ExitedAt:   protobuf.Timestamp(st.exit.ExitedAt),
		ExecId:     p.id,
	}, nil
}

// Exec registers a further process; Start runs it.
func (s *Shim) Exec(_ context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	c, _, err := s.find(r.Id, "")
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.register(r)
}

// Kill sends a signal to a process, or to all of a task.
func (s *Shim) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	return &emptypb.Empty{}, c.kill(ctx, p, unix.Signal(r.Signal), r.All)
}

// Pause freezes a task.
func (s *Shim) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, (*container).pause)
}

// Resume lets a paused task go on.
func (s *Shim) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, (*container).resume)
}

// Update sets new limits, a runtime-spec LinuxResources.
func (s *Shim) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	resources := r.GetResources().GetValue()
	if !json.Valid(resources) {
		return nil, fmt.Errorf("task %q: resources are no JSON: %w", r.Id, errdefs.ErrInvalidArgument)
	}
	return s.change(ctx, r.Id, func(c *container, ctx context.Context) error { return c.update(ctx, resources) })
}

// change runs a call about a task that answers nothing.
func (s *Shim) change(ctx context.Context, id string, do func(*container, context.Context) error) (*emptypb.Empty, error) {
	c, _, err := s.find(id, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	return &emptypb.Empty{}, do(c, ctx)
}

// ResizePty sets the size of a terminal. Without one it does nothing.
func (s *Shim) ResizePty(_ context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	streams := c.streamsOf(p)
	if streams == nil || streams.console == nil {
		return &emptypb.Empty{}, nil
	}
	return &emptypb.Empty{}, streams.console.resize(r.Width, r.Height)
}

// CloseIO lets the input of a process end.
func (s *Shim) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if r.Stdin {
		c.closeInput(p)
	}
	return &emptypb.Empty{}, nil
}

// Wait blocks until a process has ended.
func (s *Shim) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	c, p, err := s.find(r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	exit, err := c.wait(ctx, p)
	if err != nil {
		return nil, err
	}
	return &task.WaitResponse{ExitStatus: exit.Status, ExitedAt: protobuf.Timestamp(exit.ExitedAt)}, nil
}

// Connect tells the pids of shim and task; 0 for a task that is not there.
func (s *Shim) Connect(_ context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	s.config.Hurry()
	answer := &task.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: version.String()}
	if c, p, err := s.find(r.Id, ""); err == nil {
		answer.TaskPid = uint32(c.report(p).pid)
	}
	return answer, nil
}

// Shutdown ends the shim, unless it has a container.
func (s *Shim) Shutdown(context.Context, *task.ShutdownRequest) (*emptypb.Empty, error) {
	s.leave()
	return &emptypb.Empty{}, nil
}
