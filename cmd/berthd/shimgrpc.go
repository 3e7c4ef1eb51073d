package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxgrpc"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	taskgrpc "github.com/berthd/berth/api/runtime/task/v3/taskgrpc"
	"github.com/berthd/berth/runtime"
)

// grpcShim is the task API, and that of sandboxes, of a foreign shim that speaks
// gRPC, over one connection, as the shims' own protocol has it: when that has ended, so has the
// client.
type grpcShim struct {
	conn *grpc.ClientConn
	task taskgrpc.TaskClient
	box  sandboxgrpc.SandboxClient
	wire *wire
}

// newGRPCShim makes the client of the shim at the other end of a connection,
// which it closes.
func newGRPCShim(raw net.Conn) (runtime.ShimClient, error) {
	w := &wire{Conn: raw, done: make(chan struct{})}
	var once sync.Mutex
	unused := true
	conn, err := grpc.NewClient("passthrough:///shim",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			once.Lock()
			defer once.Unlock()
			if !unused {
				return nil, errors.New("the shim has closed its connection")
			}
			unused = false
			return w, nil
		}))
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn.Connect()
	return &grpcShim{conn: conn, task: taskgrpc.NewTaskClient(conn), box: sandboxgrpc.NewSandboxClient(conn), wire: w}, nil
}

// wire is a connection that tells of its end.
type wire struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

// Read implements net.Conn.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.ended() // before anybody's call fails over it
	}
	return n, err
}

// Close implements net.Conn.
func (w *wire) Close() error {
	w.ended()
	return w.Conn.Close()
}

func (w *wire) ended() { w.once.Do(func() { close(w.done) }) }

// Done implements runtime.ShimClient.
func (g *grpcShim) Done() <-chan struct{} { return g.wire.done }

// Close implements runtime.ShimClient.
func (g *grpcShim) Close() error {
	err := g.conn.Close()
	if cerr := g.wire.Close(); err == nil && !errors.Is(cerr, net.ErrClosed) { // it may never have been used
		err = cerr
	}
	return err
}

// asked makes a call. That the connection has ended is net.ErrClosed, whatever
// gRPC makes of it.
func asked[Q, A any](ctx context.Context, g *grpcShim, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	reply, err := method(ctx, request)
	if err == nil || ctx.Err() != nil {
		return reply, err
	}
	select {
	case <-g.wire.done:
		if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled {
			return reply, fmt.Errorf("%s: %w", status.Convert(err).Message(), net.ErrClosed)
		}
	default:
	}
	return reply, err
}

// What follows implements taskttrpc.TaskService.

func (g *grpcShim) State(ctx context.Context, r *shimtask.StateRequest) (*shimtask.StateResponse, error) {
	return asked(ctx, g, g.task.State, r)
}

func (g *grpcShim) Create(ctx context.Context, r *shimtask.CreateTaskRequest) (*shimtask.CreateTaskResponse, error) {
	return asked(ctx, g, g.task.Create, r)
}

func (g *grpcShim) Start(ctx context.Context, r *shimtask.StartRequest) (*shimtask.StartResponse, error) {
	return asked(ctx, g, g.task.Start, r)
}

func (g *grpcShim) Delete(ctx context.Context, r *shimtask.DeleteRequest) (*shimtask.DeleteResponse, error) {
	return asked(ctx, g, g.task.Delete, r)
}

func (g *grpcShim) Pids(ctx context.Context, r *shimtask.PidsRequest) (*shimtask.PidsResponse, error) {
	return asked(ctx, g, g.task.Pids, r)
}

func (g *grpcShim) Pause(ctx context.Context, r *shimtask.PauseRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Pause, r)
}

func (g *grpcShim) Resume(ctx context.Context, r *shimtask.ResumeRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Resume, r)
}

func (g *grpcShim) Checkpoint(ctx context.Context, r *shimtask.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Checkpoint, r)
}

func (g *grpcShim) Kill(ctx context.Context, r *shimtask.KillRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Kill, r)
}

func (g *grpcShim) Exec(ctx context.Context, r *shimtask.ExecProcessRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Exec, r)
}

func (g *grpcShim) ResizePty(ctx context.Context, r *shimtask.ResizePtyRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.ResizePty, r)
}

func (g *grpcShim) CloseIO(ctx context.Context, r *shimtask.CloseIORequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.CloseIO, r)
}

func (g *grpcShim) Update(ctx context.Context, r *shimtask.UpdateTaskRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Update, r)
}

func (g *grpcShim) Wait(ctx context.Context, r *shimtask.WaitRequest) (*shimtask.WaitResponse, error) {
	return asked(ctx, g, g.task.Wait, r)
}

func (g *grpcShim) Stats(ctx context.Context, r *shimtask.StatsRequest) (*shimtask.StatsResponse, error) {
	return asked(ctx, g, g.task.Stats, r)
}

func (g *grpcShim) Connect(ctx context.Context, r *shimtask.ConnectRequest) (*shimtask.ConnectResponse, error) {
	return asked(ctx, g, g.task.Connect, r)
}

func (g *grpcShim) Shutdown(ctx context.Context, r *shimtask.ShutdownRequest) (*emptypb.Empty, error) {
	return asked(ctx, g, g.task.Shutdown, r)
}

// What follows implements sandboxttrpc.SandboxService.

func (g *grpcShim) CreateSandbox(ctx context.Context, r *shimbox.CreateSandboxRequest) (*shimbox.CreateSandboxResponse, error) {
	return asked(ctx, g, g.box.CreateSandbox, r)
}

func (g *grpcShim) StartSandbox(ctx context.Context, r *shimbox.StartSandboxRequest) (*shimbox.StartSandboxResponse, error) {
	return asked(ctx, g, g.box.StartSandbox, r)
}

func (g *grpcShim) Platform(ctx context.Context, r *shimbox.PlatformRequest) (*shimbox.PlatformResponse, error) {
	return asked(ctx, g, g.box.Platform, r)
}

func (g *grpcShim) StopSandbox(ctx context.Context, r *shimbox.StopSandboxRequest) (*shimbox.StopSandboxResponse, error) {
	return asked(ctx, g, g.box.StopSandbox, r)
}

func (g *grpcShim) WaitSandbox(ctx context.Context, r *shimbox.WaitSandboxRequest) (*shimbox.WaitSandboxResponse, error) {
	return asked(ctx, g, g.box.WaitSandbox, r)
}

func (g *grpcShim) SandboxStatus(ctx context.Context, r *shimbox.SandboxStatusRequest) (*shimbox.SandboxStatusResponse, error) {
	return asked(ctx, g, g.box.SandboxStatus, r)
}

func (g *grpcShim) PingSandbox(ctx context.Context, r *shimbox.PingRequest) (*shimbox.PingResponse, error) {
	return asked(ctx, g, g.box.PingSandbox, r)
}

func (g *grpcShim) ShutdownSandbox(ctx context.Context, r *shimbox.ShutdownSandboxRequest) (*shimbox.ShutdownSandboxResponse, error) {
	return asked(ctx, g, g.box.ShutdownSandbox, r)
}

func (g *grpcShim) SandboxMetrics(ctx context.Context, r *shimbox.SandboxMetricsRequest) (*shimbox.SandboxMetricsResponse, error) {
	return asked(ctx, g, g.box.SandboxMetrics, r)
}
