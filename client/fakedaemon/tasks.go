package fakedaemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/types/task"
)

// Process is what Behave plays with. Streams that the client did not ask for
// read as ended and swallow what is written.
type Process struct {
	ID      string // CONTAINER or CONTAINER/EXEC
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Signals <-chan unix.Signal // SIGKILL is among them; Behave must heed it
}

// process is a task or an exec.
type process struct {
	container, exec       string
	stdin, stdout, stderr string
	terminal              bool
	status                task.Status
	exit                  uint32
	exited                *timestamppb.Timestamp
	signals               chan unix.Signal
	done                  chan struct{}
	files                 []*os.File
	stdinWriter           *os.File // keeps stdin open until CloseIO, as a shim does
}

type tasksService struct {
	tasksgrpc.UnimplementedTasksServer
	d *Daemon
}

func key(container, exec string) string {
	if exec == "" {
		return container
	}
	return container + "/" + exec
}

// find finds a process; the caller has the lock.
func (d *Daemon) find(container, exec string) (*process, error) {
	p := d.tasks[key(container, exec)]
	if p == nil {
		return nil, missing("task", key(container, exec))
	}
	return p, nil
}

func (s tasksService) Create(_ context.Context, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.d.containers[r.ContainerId] == nil {
		return nil, missing("container", r.ContainerId)
	}
	if s.d.tasks[r.ContainerId] != nil {
		return nil, fmt.Errorf("task %q: %w", r.ContainerId, errdefs.ErrAlreadyExists)
	}
	s.d.tasks[r.ContainerId] = newProcess(r.ContainerId, "", r.Stdin, r.Stdout, r.Stderr, r.Terminal)
	return &tasks.CreateTaskResponse{ContainerId: r.ContainerId, Pid: 1}, nil
}

func (s tasksService) Exec(_ context.Context, r *tasks.ExecProcessRequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if _, err := s.d.find(r.ContainerId, ""); err != nil {
		return nil, err
	}
	s.d.tasks[key(r.ContainerId, r.ExecId)] = newProcess(r.ContainerId, r.ExecId, r.Stdin, r.Stdout, r.Stderr, r.Terminal)
	return &emptypb.Empty{}, nil
}

func newProcess(container, exec, stdin, stdout, stderr string, terminal bool) *process {
	return &process{
		container: container, exec: exec, stdin: stdin, stdout: stdout, stderr: stderr, terminal: terminal,
		status: task.Status_CREATED, signals: make(chan unix.Signal, 16), done: make(chan struct{}),
	}
}

func (s tasksService) Start(_ context.Context, r *tasks.StartRequest) (*tasks.StartResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	p, err := s.d.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	played, err := p.open()
	if err != nil {
		return nil, err
	}
	p.status = task.Status_RUNNING
	s.d.processes.Go(func() {
		status := s.d.Behave(played)
		s.d.mu.Lock()
		p.status, p.exit, p.exited = task.Status_STOPPED, status, timestamppb.Now()
		s.d.mu.Unlock()
		for _, f := range p.files {
			f.Close()
		}
		close(p.done)
	})
	return &tasks.StartResponse{Pid: 1}, nil
}

// open opens the process's ends of the fifos.
func (p *process) open() (*Process, error) {
	played := &Process{ID: key(p.container, p.exec), Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard, Signals: p.signals}
	open := func(path string, flag int) (*os.File, error) {
		f, err := os.OpenFile(path, flag, 0)
		if err == nil {
			p.files = append(p.files, f)
		}
		return f, err
	}
	if p.stdin != "" {
		f, err := open(p.stdin, os.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		if p.stdinWriter, err = open(p.stdin, os.O_WRONLY); err != nil {
			return nil, err
		}
		played.Stdin = f
	}
	for _, output := range []struct {
		path string
		to   *io.Writer
	}{{p.stdout, &played.Stdout}, {p.stderr, &played.Stderr}} {
		if output.path == "" || strings.Contains(output.path, "://") {
			continue
		}
		f, err := open(output.path, os.O_WRONLY)
		if err != nil {
			return nil, err
		}
		*output.to = f
	}
	return played, nil
}

func (s tasksService) CloseIO(_ context.Context, r *tasks.CloseIORequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	p, err := s.d.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.stdinWriter != nil {
		p.stdinWriter.Close()
	}
	return &emptypb.Empty{}, nil
}

func (s tasksService) ResizePty(context.Context, *tasks.ResizePtyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s tasksService) Kill(_ context.Context, r *tasks.KillRequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	p, err := s.d.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.status == task.Status_STOPPED {
		return nil, fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	p.signals <- unix.Signal(r.Signal)
	return &emptypb.Empty{}, nil
}

func (s tasksService) Wait(ctx context.Context, r *tasks.WaitRequest) (*tasks.WaitResponse, error) {
	s.d.mu.Lock()
	p, err := s.d.find(r.ContainerId, r.ExecId)
	s.d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return &tasks.WaitResponse{ExitStatus: p.exit, ExitedAt: p.exited}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s tasksService) Get(_ context.Context, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	p, err := s.d.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	return &tasks.GetResponse{Process: p.message()}, nil
}

func (p *process) message() *task.Process {
	return &task.Process{
		ContainerId: p.container, Id: p.container, Pid: 1, Status: p.status, Terminal: p.terminal,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, ExitStatus: p.exit, ExitedAt: p.exited,
	}
}

func (s tasksService) List(context.Context, *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	answer := &tasks.ListTasksResponse{}
	for _, p := range s.d.tasks {
		if p.exec == "" {
			answer.Tasks = append(answer.Tasks, p.message())
		}
	}
	return answer, nil
}

func (s tasksService) Delete(_ context.Context, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error) {
	return s.d.remove(r.ContainerId, "")
}

func (s tasksService) DeleteProcess(_ context.Context, r *tasks.DeleteProcessRequest) (*tasks.DeleteResponse, error) {
	return s.d.remove(r.ContainerId, r.ExecId)
}

func (d *Daemon) remove(container, exec string) (*tasks.DeleteResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.find(container, exec)
	if err != nil {
		return nil, err
	}
	if p.status == task.Status_RUNNING {
		return nil, fmt.Errorf("cannot delete a running process") // Unknown on the wire
	}
	delete(d.tasks, key(container, exec))
	return &tasks.DeleteResponse{Id: container, Pid: 1, ExitStatus: p.exit, ExitedAt: p.exited}, nil
}

// endAll kills whatever runs.
func (d *Daemon) endAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.tasks {
		if p.status == task.Status_RUNNING {
			p.signals <- unix.SIGKILL
		}
	}
}

// UntilKilled is a Behave that ends with the first signal.
func UntilKilled(p *Process) uint32 { return 128 + uint32(<-p.Signals) }
