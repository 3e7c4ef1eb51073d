package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Server serves the task API and that of sandboxes of one shim on a unix socket,
// to peers of its own user and group.
type Server struct {
	shim  *Shim
	ttrpc *ttrpc.Server
	// answered is closed when the answer to the Shutdown that ends the shim has
	// been written.
	answered chan struct{}
	told     atomic.Bool
}

// answerTime bounds the wait for the last answer to be written. A client that has
// hung up gets none.
const answerTime = time.Second

// The versions of the task API. Their messages are the same on the wire.
var serviceNames = [...]string{"containerd.task.v2.Task", "containerd.task.v3.Task"}

// NewServer makes a server.
func NewServer(s *Shim) (*Server, error) {
	server := &Server{shim: s, answered: make(chan struct{})}
	var err error
	server.ttrpc, err = ttrpc.NewServer(ttrpc.WithServerHandshaker(server))
	if err != nil {
		return nil, err
	}
	methods := s.methods()
	for _, name := range serviceNames {
		server.ttrpc.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
	server.ttrpc.RegisterService(groupService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{"Join": method(s, "Join", s.Join)}})
	server.ttrpc.RegisterService(sandboxService, &ttrpc.ServiceDesc{Methods: s.sandboxMethods()})
	server.ttrpc.RegisterService("berth.shim.v1.Streams", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Attach":    method(s, "Attach", s.Attach),
		"ReopenLog": method(s, "ReopenLog", s.ReopenLog),
	}})
	return server, nil
}

// Serve serves until Shutdown was called with nothing left to supervise, and
// answered. Then last is called, and when it returns listener and connections
// are closed: a client that sees its connection end before it has read the
// answer may take that for a failure.
func (s *Server) Serve(ctx context.Context, l net.Listener, last func()) error {
	failed := make(chan error, 1)
	go func() { failed <- s.ttrpc.Serve(ctx, l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve task API: %w", err)
	case <-s.shim.Left():
	}
	within(answerTime, s.answered)
	s.shim.farewell()
	last()
	err := s.ttrpc.Close()
	<-failed
	return err
}

// Handshake lets in who has the shim's own user and group.
func (s *Server) Handshake(_ context.Context, c net.Conn) (net.Conn, any, error) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("a %T is no unix socket", c)
	}
	if err := ownPeer(unixConn); err != nil {
		return nil, nil, err
	}
	return &answering{unixConn, s}, nil, nil
}

// answering is a connection that notices the first write after the shim has
// left: the answer to Shutdown, or another one that is its sign as well that
// the answers go out.
type answering struct {
	net.Conn
	server *Server
}

// Write writes and takes notice.
func (a *answering) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	select {
	case <-a.server.shim.Left():
		if !a.server.told.Swap(true) {
			close(a.server.answered)
		}
	default:
	}
	return n, err
}

// methods makes the table of the API's methods.
func (s *Shim) methods() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"Checkpoint": method(s, "Checkpoint", s.Checkpoint),
		"CloseIO":    method(s, "CloseIO", s.CloseIO),
		"Connect":    method(s, "Connect", s.Connect),
		"Create":     method(s, "Create", s.Create),
		"Delete":     method(s, "Delete", s.Delete),
		"Exec":       method(s, "Exec", s.Exec),
		"Kill":       method(s, "Kill", s.Kill),
		"Pause":      method(s, "Pause", s.Pause),
		"Pids":       method(s, "Pids", s.Pids),
		"ResizePty":  method(s, "ResizePty", s.ResizePty),
		"Resume":     method(s, "Resume", s.Resume),
		"Shutdown":   method(s, "Shutdown", s.Shutdown),
		"Start":      method(s, "Start", s.Start),
		"State":      method(s, "State", s.State),
		"Stats":      method(s, "Stats", s.Stats),
		"Update":     method(s, "Update", s.Update),
		"Wait":       method(s, "Wait", s.Wait),
	}
}

// sandboxMethods makes the table of the methods of a sandbox.
func (s *Shim) sandboxMethods() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"CreateSandbox":   method(s, "CreateSandbox", s.CreateSandbox),
		"StartSandbox":    method(s, "StartSandbox", s.StartSandbox),
		"Platform":        method(s, "Platform", s.Platform),
		"StopSandbox":     method(s, "StopSandbox", s.StopSandbox),
		"WaitSandbox":     method(s, "WaitSandbox", s.WaitSandbox),
		"SandboxStatus":   method(s, "SandboxStatus", s.SandboxStatus),
		"PingSandbox":     method(s, "PingSandbox", s.PingSandbox),
		"ShutdownSandbox": method(s, "ShutdownSandbox", s.ShutdownSandbox),
		"SandboxMetrics":  method(s, "SandboxMetrics", s.SandboxMetrics),
	}
}

// method makes a method of the wire from one of Go: errors get their code, a
// panic is answered and logged and does not end the shim.
func method[Q, A any, PQ interface {
	*Q
	proto.Message
}, PA interface {
	*A
	proto.Message
}](s *Shim, name string, do func(context.Context, PQ) (PA, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (_ any, err error) {
		request := PQ(new(Q))
		if err := unmarshal(request); err != nil {
			return nil, err
		}
		defer s.trim.later()
		defer func() {
			if v := recover(); v != nil {
				s.config.Log.Error("panic", "method", name, "value", v, "stack", string(debug.Stack()))
				err = status.Errorf(codes.Internal, "%s: panic: %v", name, v)
			}
		}()
		answer, err := do(ctx, request)
		if err != nil {
			return nil, wireError(err)
		}
		return answer, nil
	}
}

// kinds pairs the kinds of errors with the codes of the wire.
var kinds = []struct {
	err  error
	code codes.Code
}{
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// wireError gives an error its code; Unknown unless it has a kind.
func wireError(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
