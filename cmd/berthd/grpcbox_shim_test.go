package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxgrpc"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	taskgrpc "github.com/berthd/berth/api/runtime/task/v3/taskgrpc"
	apitask "github.com/berthd/berth/api/types/task"
)

// asBoxShim makes this test binary the shim of a sandbox that serves gRPC: it is
// the directory that its socket is to be in.
const asBoxShim = "BERTHD_TEST_BOX"

// boxShimMain has the command line of the shim protocol.
func boxShimMain(dir string, args []string) error {
	id := args[slices.Index(args, "-id")+1]
	switch args[len(args)-1] {
	case "start":
		return boxShimStart(filepath.Join(dir, id+".sock"), args)
	case "serve":
		l, err := net.FileListener(os.NewFile(3, "socket"))
		if err != nil {
			return err
		}
		s := &boxShim{id: id, tasks: map[string]*boxTask{}, ended: make(chan struct{})}
		server := grpc.NewServer()
		taskgrpc.RegisterTaskServer(server, s)
		sandboxgrpc.RegisterSandboxServer(server, s)
		return server.Serve(l)
	case "delete":
		out, err := proto.Marshal(&shimtask.DeleteResponse{ExitStatus: 137})
		if err == nil {
			_, err = os.Stdout.Write(out)
		}
		return err
	}
	return fmt.Errorf("%q", args)
}

func boxShimStart(path string, args []string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	socket, err := l.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", append(args[:len(args)-1:len(args)-1], "serve")...)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"version": 3, "address": "unix://" + path, "protocol": "grpc"})
}

// boxShim is a sandbox whose containers are processes that sleep.
type boxShim struct {
	taskgrpc.UnimplementedTaskServer
	sandboxgrpc.UnimplementedSandboxServer
	id    string
	ended chan struct{}

	mu    sync.Mutex
	tasks map[string]*boxTask
	ready bool
}

type boxTask struct {
	cmd     *exec.Cmd
	started bool
	done    chan struct{}
	status  uint32
	at      time.Time
}

func (s *boxShim) task(id string) (*boxTask, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil {
		return t, nil
	}
	return nil, status.Errorf(codes.NotFound, "task %q", id)
}

func (s *boxShim) Connect(context.Context, *shimtask.ConnectRequest) (*shimtask.ConnectResponse, error) {
	return &shimtask.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "box"}, nil
}

func (s *boxShim) Create(_ context.Context, r *shimtask.CreateTaskRequest) (*shimtask.CreateTaskResponse, error) {
	t := &boxTask{cmd: exec.Command("sleep", "1000"), done: make(chan struct{})}
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = t.cmd.Wait()
		t.status, t.at = 128+uint32(t.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()), time.Now()
		close(t.done)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[r.GetId()] = t
	return &shimtask.CreateTaskResponse{Pid: uint32(t.cmd.Process.Pid)}, nil
}

func (s *boxShim) Start(_ context.Context, r *shimtask.StartRequest) (*shimtask.StartResponse, error) {
	t, err := s.task(r.GetId())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.started = true
	return &shimtask.StartResponse{Pid: uint32(t.cmd.Process.Pid)}, nil
}

func (s *boxShim) State(_ context.Context, r *shimtask.StateRequest) (*shimtask.StateResponse, error) {
	t, err := s.task(r.GetId())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := &shimtask.StateResponse{Id: r.GetId(), Pid: uint32(t.cmd.Process.Pid), Status: apitask.Status_CREATED}
	if t.started {
		reply.Status = apitask.Status_RUNNING
	}
	select {
	case <-t.done:
		reply.Status, reply.ExitStatus, reply.ExitedAt = apitask.Status_STOPPED, t.status, timestamppb.New(t.at)
	default:
	}
	return reply, nil
}

func (s *boxShim) Kill(_ context.Context, r *shimtask.KillRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.GetId())
	if err == nil {
		err = t.cmd.Process.Signal(syscall.Signal(r.GetSignal()))
	}
	return &emptypb.Empty{}, err
}

func (s *boxShim) Wait(ctx context.Context, r *shimtask.WaitRequest) (*shimtask.WaitResponse, error) {
	t, err := s.task(r.GetId())
	if err != nil {
		return nil, err
	}
	select {
	case <-t.done:
		return &shimtask.WaitResponse{ExitStatus: t.status, ExitedAt: timestamppb.New(t.at)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *boxShim) Delete(_ context.Context, r *shimtask.DeleteRequest) (*shimtask.DeleteResponse, error) {
	t, err := s.task(r.GetId())
	if err != nil {
		return nil, err
	}
	<-t.done
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, r.GetId())
	return &shimtask.DeleteResponse{Pid: uint32(t.cmd.Process.Pid), ExitStatus: t.status, ExitedAt: timestamppb.New(t.at)}, nil
}

func (s *boxShim) CreateSandbox(context.Context, *shimbox.CreateSandboxRequest) (*shimbox.CreateSandboxResponse, error) {
	return &shimbox.CreateSandboxResponse{}, nil
}

func (s *boxShim) StartSandbox(context.Context, *shimbox.StartSandboxRequest) (*shimbox.StartSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	return &shimbox.StartSandboxResponse{Pid: uint32(os.Getpid()), CreatedAt: timestamppb.Now()}, nil
}

func (s *boxShim) SandboxStatus(_ context.Context, r *shimbox.SandboxStatusRequest) (*shimbox.SandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := &shimbox.SandboxStatusResponse{SandboxId: r.GetSandboxId(), State: "SANDBOX_NOTREADY"}
	if s.ready {
		reply.State = "SANDBOX_READY"
	}
	return reply, nil
}

func (s *boxShim) WaitSandbox(ctx context.Context, _ *shimbox.WaitSandboxRequest) (*shimbox.WaitSandboxResponse, error) {
	select {
	case <-s.ended:
		return &shimbox.WaitSandboxResponse{ExitedAt: timestamppb.Now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *boxShim) StopSandbox(context.Context, *shimbox.StopSandboxRequest) (*shimbox.StopSandboxResponse, error) {
	close(s.ended)
	return &shimbox.StopSandboxResponse{}, nil
}

func (s *boxShim) ShutdownSandbox(context.Context, *shimbox.ShutdownSandboxRequest) (*shimbox.ShutdownSandboxResponse, error) {
	time.AfterFunc(10*time.Millisecond, func() { os.Exit(0) }) // once its answer is out
	return &shimbox.ShutdownSandboxResponse{}, nil
}
