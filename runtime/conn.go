package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
)

// conn is a connection to a shim.
type conn struct {
	client io.Closer
	shim   taskttrpc.TaskService
	box    sandboxttrpc.SandboxService
	done   <-chan struct{} // closed when the connection is

	silent  atomic.Int64 // since when a deadline has passed without an answer, in Unix nanoseconds; 0 if none has
	probing atomic.Bool  // it is being asked whether it answers again
}

// writeLimit bounds how long a shim that reads nothing can hold up a write. What
// is written is a few hundred bytes into a socket buffer of 200 KiB.
const writeLimit = 5 * time.Second

// answerMargin is what is taken off the time a shim is told to have, so that its
// own account of what it waited for arrives before ours.
const answerMargin = time.Second

// ShimClient is a client of a shim, of its task API and that of sandboxes, over
// another protocol than ttrpc. Done is closed when its connection has ended, Close
// ends it.
type ShimClient interface {
	taskttrpc.TaskService
	sandboxttrpc.SandboxService
	Done() <-chan struct{}
	Close() error
}

// dial connects to a shim. It blocks for no longer than it takes the kernel,
// since one of our own that has been started need not be up yet; with wait it
// tries until ctx ends.
func (t *Tasks) dial(ctx context.Context, at contact, wait bool) (*conn, error) {
	dial, err := at.dialer()
	if err != nil {
		return nil, err
	}
	if at.Protocol == protocolGRPC && t.cfg.GRPC == nil {
		return nil, fmt.Errorf("a shim that speaks gRPC: %w", errdefs.ErrNotImplemented)
	}
	var raw net.Conn
	if wait {
		raw, err = dialRetry(ctx, dial)
	} else {
		raw, err = dial(ctx)
	}
	if err != nil {
		return nil, err
	}
	if at.Protocol == protocolGRPC {
		client, err := t.cfg.GRPC(raw)
		if err != nil {
			return nil, err
		}
		return &conn{client: client, shim: client, box: client, done: client.Done()}, nil
	}
	done := make(chan struct{})
	client := ttrpc.NewClient(guardedConn{raw},
		ttrpc.WithOnClose(func() { close(done) }),
		ttrpc.WithUnaryClientInterceptor(interceptor(at.Version)))
	return &conn{client: client, shim: taskttrpc.NewTaskClient(client), box: sandboxttrpc.NewSandboxClient(client), done: done}, nil
}

// The task API's service by version. The messages are the same on the wire.
const (
	serviceV2 = "containerd.task.v2.Task"
	serviceV3 = "containerd.task.v3.Task"
)

func interceptor(version int) ttrpc.UnaryClientInterceptor {
	if version != taskV2 {
		return shortenTimeout
	}
	return func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		if req.Service == serviceV3 {
			req.Service = serviceV2
		}
		return shortenTimeout(ctx, req, resp, info, invoke)
	}
}

// dialAnswer tells a socket on which nobody listens from one that can't be
// reached now.
func dialAnswer(err error) answer {
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return refused
	}
	return silent
}

// guardedConn is a connection whose writes end. ttrpc goes on with a connection
// of which half a message was written, so a failed write closes it.
type guardedConn struct{ net.Conn }

func (g guardedConn) Write(b []byte) (int, error) {
	if err := g.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	n, err := g.Conn.Write(b)
	if err != nil {
		_ = g.Close()
	}
	return n, err
}

func shortenTimeout(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if left := time.Duration(req.TimeoutNano); left > 0 {
		req.TimeoutNano = int64(left - min(answerMargin, left/5))
	}
	return invoke(ctx, req, resp)
}

// close ends the connection. It does not wait.
func (c *conn) close() { _ = c.client.Close() }

// closed tells whether the connection has ended.
func (c *conn) closed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// call asks the shim for what; limit 0 is none. Its errors are errdefs kinds; a
// shim that has gone is Unavailable, one that does not answer is
// context.DeadlineExceeded, and both say what was waited for.
func call[Q, A any](ctx context.Context, c *conn, what string, limit time.Duration, method func(context.Context, Q) (A, error), request Q) (A, error) {
	inner := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		inner, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	reply, err := method(inner, request)
	if err == nil {
		c.silent.Store(0)
		return reply, nil
	}
	if inner.Err() != nil && ctx.Err() == nil {
		c.missed()
	}
	var none A
	return none, c.explain(ctx, what, limit, err)
}

func (c *conn) explain(ctx context.Context, what string, limit time.Duration, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("waiting for the shim to %s: %w", what, ctx.Err())
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.DeadlineExceeded {
		return errgrpc.ToNative(err)
	} else if ok {
		return fmt.Errorf("the shim could not %s in time (%s): %w", what, s.Message(), context.DeadlineExceeded)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the shim did not %s within %s: %w", what, limit, context.DeadlineExceeded)
	}
	if errors.Is(err, ttrpc.ErrClosed) || c.closed() || isHangup(err) {
		return fmt.Errorf("%w before it could %s: %w", errShimGone, what, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("asking the shim to %s: %w", what, err)
}

// errShimGone marks errors of a connection that ended.
var errShimGone = errors.New("the shim has gone")

func isHangup(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed)
}
