package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/internal/obs"
)

// endless lists the methods whose calls last until something happens. They are
// ended when the daemon drains; all others are waited for.
var endless = map[string]bool{
	"/containerd.services.events.v1.Events/Subscribe": true,
	"/containerd.services.tasks.v1.Tasks/Wait":        true,
	"/berth.logs.v1.Logs/Read":                        true,
	"/grpc.health.v1.Health/Watch":                    true,
}

// large lists the services whose calls move whole layers.
var large = []string{
	"/containerd.services.transfer.v1.Transfer/", "/containerd.services.content.v1.Content/", "/containerd.services.diff.v1.Diff/",
	"/berth.images.v1.Images/",
}

// edge is what every call passes on its way in and out.
type edge struct {
	memory  Memory // nil: nobody looks after it
	log     *slog.Logger
	metrics *obs.Metrics
	known   map[string]bool // full names of the methods that are served; set before the first call
	running context.Context // ends when the daemon drains
}

// unary is the interceptor of calls with one answer.
func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	err = e.pass(ctx, info.FullMethod, endless[info.FullMethod], func(ctx context.Context) (err error) {
		answer, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// stream is the interceptor of calls with streams.
func (e *edge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return e.pass(ss.Context(), info.FullMethod, true, func(ctx context.Context) error {
		return handler(srv, &scopedStream{ServerStream: ss, ctx: ctx})
	})
}

// ttrpc is the interceptor of calls from shims.
func (e *edge) ttrpc(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (answer any, err error) {
	err = e.pass(ctx, info.FullMethod, false, func(ctx context.Context) (err error) {
		answer, err = method(ctx, unmarshal)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// pass runs a call between the way in and the way out. long calls are counted
// but not timed.
func (e *edge) pass(ctx context.Context, method string, long bool, call func(context.Context) error) error {
	began := time.Now()
	defer e.remember(method)()
	ctx = withScope(ctx)
	if endless[method] {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := context.AfterFunc(e.running, func() { cancel(errDraining) })
		defer stop()
	}
	err := e.guarded(ctx, method, call)
	if err != nil && errors.Is(context.Cause(ctx), errDraining) {
		err = errDraining
	}
	err = wire(err)
	e.tell(ctx, method, long, began, err)
	return err
}

// remember tells of a call that begins, and gives what tells that it has ended.
func (e *edge) remember(method string) (end func()) {
	switch {
	case e.memory == nil:
		return func() {}
	case slices.ContainsFunc(large, func(service string) bool { return strings.HasPrefix(method, service) }):
		return e.memory.Large()
	}
	return e.memory.Small
}

// guarded turns a panic of the call into its error. The log has the stack; the
// client learns only that it happened.
func (e *edge) guarded(ctx context.Context, method string, call func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("call panicked", "method", method, "namespace", anyScope(ctx).Namespace,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("%s failed inside berthd, whose log has the reason: %w", method, errdefs.ErrInternal)
		}
	}()
	return call(ctx)
}

// tell writes the call's line to the log and counts it.
func (e *edge) tell(ctx context.Context, method string, long bool, began time.Time, err error) {
	code := status.Code(err).String()
	counted := method
	if !e.known[method] {
		counted = "other" // a client must not be able to make metrics grow
	}
	e.metrics.Call(counted, code, long, time.Since(began))
	if !e.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.String("code", code), obs.Took(began)}
	if s := anyScope(ctx); s.Namespace != "" {
		attrs = append(attrs, slog.String("namespace", s.Namespace))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	e.log.LogAttrs(ctx, slog.LevelDebug, "call ended", attrs...)
}

// scopedStream is a stream whose context has the call's scope.
type scopedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *scopedStream) Context() context.Context { return s.ctx }
