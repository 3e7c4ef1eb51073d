package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxgrpc"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	taskgrpc "github.com/berthd/berth/api/runtime/task/v3/taskgrpc"
	"github.com/berthd/berth/internal/leak"
)

// shimOverGRPC is a shim that knows one task, "a", which never ends.
type shimOverGRPC struct {
	taskgrpc.UnimplementedTaskServer
}

func (shimOverGRPC) Connect(_ context.Context, r *shimtask.ConnectRequest) (*shimtask.ConnectResponse, error) {
	return &shimtask.ConnectResponse{ShimPid: 7, TaskPid: uint32(len(r.GetId()))}, nil
}

func (shimOverGRPC) State(context.Context, *shimtask.StateRequest) (*shimtask.StateResponse, error) {
	return nil, status.Error(codes.NotFound, "no such task")
}

func (shimOverGRPC) Wait(ctx context.Context, _ *shimtask.WaitRequest) (*shimtask.WaitResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// boxOverGRPC is a sandbox, "p", which never ends.
type boxOverGRPC struct {
	sandboxgrpc.UnimplementedSandboxServer
}

func (boxOverGRPC) StartSandbox(context.Context, *shimbox.StartSandboxRequest) (*shimbox.StartSandboxResponse, error) {
	return &shimbox.StartSandboxResponse{Pid: 8}, nil
}

func (boxOverGRPC) SandboxStatus(_ context.Context, r *shimbox.SandboxStatusRequest) (*shimbox.SandboxStatusResponse, error) {
	return &shimbox.SandboxStatusResponse{SandboxId: r.GetSandboxId(), State: "SANDBOX_READY"}, nil
}

func (boxOverGRPC) WaitSandbox(ctx context.Context, _ *shimbox.WaitSandboxRequest) (*shimbox.WaitSandboxResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestGRPCShim speaks to a shim over gRPC: answers and errors come through, and
// the end of the connection is told as what it is.
func TestGRPCShim(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	taskgrpc.RegisterTaskServer(server, shimOverGRPC{})
	sandboxgrpc.RegisterSandboxServer(server, boxOverGRPC{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	raw, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := newGRPCShim(raw)
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.Connect(t.Context(), &shimtask.ConnectRequest{Id: "abc"})
	if err != nil || r.GetShimPid() != 7 || r.GetTaskPid() != 3 {
		t.Errorf("connect: %v, %v", r, err)
	}
	if _, err := client.State(t.Context(), &shimtask.StateRequest{Id: "a"}); status.Code(err) != codes.NotFound {
		t.Errorf("state: %v", err)
	}
	if _, err := client.Pids(t.Context(), &shimtask.PidsRequest{Id: "a"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("pids: %v", err)
	}
	if r, err := client.StartSandbox(t.Context(), &shimbox.StartSandboxRequest{SandboxId: "p"}); err != nil || r.GetPid() != 8 {
		t.Errorf("start sandbox: %v, %v", r, err)
	}
	if r, err := client.SandboxStatus(t.Context(), &shimbox.SandboxStatusRequest{SandboxId: "p"}); err != nil || r.GetState() != "SANDBOX_READY" {
		t.Errorf("sandbox status: %v, %v", r, err)
	}
	if _, err := client.CreateSandbox(t.Context(), &shimbox.CreateSandboxRequest{SandboxId: "p"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("create sandbox: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	_, err = client.Wait(short, &shimtask.WaitRequest{Id: "a"})
	cancel()
	if status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
	select {
	case <-client.Done():
		t.Error("done before its time")
	default:
	}
	waited := make(chan error, 1)
	go func() {
		_, err := client.Stats(t.Context(), &shimtask.StatsRequest{Id: "a"})
		for err == nil || status.Code(err) == codes.Unimplemented {
			_, err = client.Stats(t.Context(), &shimtask.StatsRequest{Id: "a"})
		}
		waited <- err
	}()
	ended := make(chan error, 1)
	go func() {
		_, err := client.WaitSandbox(t.Context(), &shimbox.WaitSandboxRequest{SandboxId: "p"})
		ended <- err
	}()
	server.Stop() // the shim dies in the midst of calls
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a wait for a sandbox over the shim's death: %v", err)
	}
	if err := <-waited; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a call over the shim's death: %v", err)
	}
	<-client.Done()
	if _, err := client.Connect(t.Context(), &shimtask.ConnectRequest{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a call after the shim's death: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestGRPCShimClosed closes a client that nobody has used.
func TestGRPCShimClosed(t *testing.T) {
	leak.Check(t)
	ours, theirs := net.Pipe()
	client, err := newGRPCShim(ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	<-client.Done()
	if err := theirs.Close(); err != nil {
		t.Error(err)
	}
}
