package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	apievents "github.com/berthd/berth/api/events"
	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/record"
)

// sandboxesDir is where the bundles of sandboxes are, below STATE.
const sandboxesDir = "io.containerd.sandbox.controller.v1.shim"

// Topics of sandboxes.
const (
	topicSandboxCreate = "/sandboxes/create"
	topicSandboxStart  = "/sandboxes/start"
	topicSandboxExit   = "/sandboxes/exit"
)

// box is a sandbox: a shim that is there for the containers of a pod before the
// first and after the last. It is a task without a container: the same shim,
// records and standing, but not in the table of tasks.
type box struct {
	*task
	// over is closed once the sandbox has ended; exitedAt is set before.
	over     chan struct{}
	exitedAt time.Time
	// made says that its create came to an outcome, adopted that an earlier daemon
	// has made it; both are fixed once the box is known.
	made, adopted bool
}

func (t *Tasks) newBox(in record.Intent) *box {
	k := t.newTask(in.Namespace, in.ID, creating)
	k.dir = filepath.Join(t.cfg.State, sandboxesDir, in.Namespace, in.ID)
	k.intent = in
	if in.Foreign { // it says where it listens; what stands there until then is nobody else's
		k.settle(socketPath(t.cfg.State, in.Namespace, "sandbox/"+in.ID))
	} else {
		k.settle(groupSocket(t.cfg.State, in.Namespace, in.Group))
	}
	return &box{task: k, over: make(chan struct{})}
}

// sandbox finds a sandbox: NotFound.
func (t *Tasks) sandbox(ns, id string) (*box, error) {
	if err := errors.Join(names.Namespace(ns), names.Identifier(id)); err != nil {
		return nil, err
	}
	t.mu.Lock()
	b := t.boxes[name{ns, id}]
	t.mu.Unlock()
	if b == nil || b.view().stand == creating {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return b, nil
}

// askBox makes a call to a sandbox's shim.
func askBox[Q, A any](ctx context.Context, t *Tasks, b *box, what string, limit time.Duration, method func(sandboxttrpc.SandboxService, context.Context, Q) (A, error), request Q) (A, error) {
	var none A
	v, err := b.settled(ctx, t.cfg.Deadlines.Connect)
	if err != nil {
		return none, err
	}
	if v.conn == nil {
		b.try()
		return none, fmt.Errorf("sandbox %q: %s: %w", b.id, v.reason, errdefs.ErrUnavailable)
	}
	bound := func(ctx context.Context, q Q) (A, error) { return method(v.conn.box, ctx, q) }
	reply, err := call(ctx, v.conn, what, limit, bound, request)
	if err != nil {
		return none, fmt.Errorf("sandbox %q: %w", b.id, err)
	}
	return reply, nil
}

// end notes that the sandbox has ended.
func (b *box) end(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.over:
	default:
		b.exitedAt = at
		close(b.over)
	}
}

// ended tells when the sandbox has ended, if it has.
func (b *box) ended() (at time.Time, ok bool) {
	select {
	case <-b.over:
		return b.exitedAt, true
	default:
		return time.Time{}, false
	}
}

// StartSandbox makes a sandbox ready. If that fails its shim is told to leave.
func (t *Tasks) StartSandbox(ctx context.Context, ns string, r *sandbox.ControllerStartRequest) (*sandbox.ControllerStartResponse, error) {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	reply, err := askBox(ctx, t, b, "start the sandbox", t.cfg.Deadlines.Start, sandboxttrpc.SandboxService.StartSandbox, &shimbox.StartSandboxRequest{SandboxId: b.id})
	if errdefs.IsFailedPrecondition(err) {
		return nil, err // it was started before, and stays
	}
	if err != nil {
		return nil, t.failBox(b, err)
	}
	t.cfg.Publish(context.WithoutCancel(ctx), ns, topicSandboxStart, &apievents.SandboxStart{SandboxId: b.id})
	at := b.contact()
	return &sandbox.ControllerStartResponse{
		SandboxId: b.id, Pid: reply.GetPid(), CreatedAt: reply.GetCreatedAt(), Spec: reply.GetSpec(),
		Address: at.endpoint(), Version: uint32(at.Version),
	}, nil
}

// StopSandbox makes a sandbox not ready. One that there is not is stopped.
func (t *Tasks) StopSandbox(ctx context.Context, ns string, r *sandbox.ControllerStopRequest) error {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ok := b.ended(); ok {
		return nil
	}
	limit := t.cfg.Deadlines.Control + time.Duration(min(r.GetTimeoutSecs(), maxStop))*time.Second
	_, err = askBox(ctx, t, b, "stop the sandbox", limit, sandboxttrpc.SandboxService.StopSandbox,
		&shimbox.StopSandboxRequest{SandboxId: b.id, TimeoutSecs: r.GetTimeoutSecs()})
	return err
}

// maxStop bounds the time that a client gives a sandbox to stop, in seconds.
const maxStop = 600

// WaitSandbox returns once a sandbox has ended, and publishes that once for each
// call.
func (t *Tasks) WaitSandbox(ctx context.Context, ns string, r *sandbox.ControllerWaitRequest) (*sandbox.ControllerWaitResponse, error) {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	select {
	case <-b.over:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.ctx.Done():
		return nil, fmt.Errorf("wait for sandbox %q: the daemon is stopping: %w", b.id, errdefs.ErrUnavailable)
	}
	at := protobuf.Timestamp(b.exitedAt)
	t.cfg.Publish(context.WithoutCancel(ctx), ns, topicSandboxExit, &apievents.SandboxExit{SandboxId: b.id, ExitedAt: at})
	return &sandbox.ControllerWaitResponse{ExitedAt: at}, nil
}

// sandboxNotReady is the state of a sandbox that does not run.
const sandboxNotReady = "SANDBOX_NOTREADY"

// SandboxStatus tells how a sandbox stands. Of one that there is not, it says
// that it has ended.
func (t *Tasks) SandboxStatus(ctx context.Context, ns string, r *sandbox.ControllerStatusRequest) (*sandbox.ControllerStatusResponse, error) {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if errdefs.IsNotFound(err) {
		return &sandbox.ControllerStatusResponse{ExitedAt: protobuf.Timestamp(t.cfg.Now())}, nil
	}
	if err != nil {
		return nil, err
	}
	at := b.contact()
	answer := &sandbox.ControllerStatusResponse{
		SandboxId: b.id, State: sandboxNotReady, CreatedAt: protobuf.Timestamp(b.view().intent.CreatedAt),
		Address: at.endpoint(), Version: uint32(at.Version),
	}
	if at, ok := b.ended(); ok {
		answer.ExitedAt = protobuf.Timestamp(at)
		return answer, nil
	}
	reply, err := askBox(ctx, t, b, "tell the sandbox's state", t.cfg.Deadlines.State, sandboxttrpc.SandboxService.SandboxStatus,
		&shimbox.SandboxStatusRequest{SandboxId: b.id, Verbose: r.GetVerbose()})
	if err != nil {
		return nil, err
	}
	answer.Pid, answer.State, answer.Info, answer.Extra = reply.GetPid(), reply.GetState(), reply.GetInfo(), reply.GetExtra()
	answer.ExitedAt = reply.GetExitedAt()
	if reply.GetCreatedAt() != nil { // else it is what the daemon knows
		answer.CreatedAt = reply.GetCreatedAt()
	}
	return answer, nil
}

// ShutdownSandbox ends a sandbox and removes it. Its shim stays as long as it
// has containers.
func (t *Tasks) ShutdownSandbox(ctx context.Context, ns string, r *sandbox.ControllerShutdownRequest) error {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if err != nil {
		return err
	}
	if b.view().conn != nil {
		_, err = askBox(ctx, t, b, "shut the sandbox down", t.cfg.Deadlines.Shutdown, sandboxttrpc.SandboxService.ShutdownSandbox,
			&shimbox.ShutdownSandboxRequest{SandboxId: b.id})
		if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, errShimGone) {
			return err
		}
	}
	return t.dropBox(b, true)
}

// SandboxMetrics tells what a sandbox itself uses.
func (t *Tasks) SandboxMetrics(ctx context.Context, ns string, r *sandbox.ControllerMetricsRequest) (*sandbox.ControllerMetricsResponse, error) {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	reply, err := askBox(ctx, t, b, "tell the sandbox's statistics", t.cfg.Deadlines.State, sandboxttrpc.SandboxService.SandboxMetrics,
		&shimbox.SandboxMetricsRequest{SandboxId: b.id})
	if err != nil {
		return nil, err
	}
	return &sandbox.ControllerMetricsResponse{Metrics: reply.GetMetrics()}, nil
}

// SandboxPlatform tells for which platform a sandbox runs programs.
func (t *Tasks) SandboxPlatform(ctx context.Context, ns string, r *sandbox.ControllerPlatformRequest) (*sandbox.ControllerPlatformResponse, error) {
	b, err := t.sandbox(ns, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	reply, err := askBox(ctx, t, b, "tell the sandbox's platform", t.cfg.Deadlines.State, sandboxttrpc.SandboxService.Platform,
		&shimbox.PlatformRequest{SandboxId: b.id})
	if err != nil {
		return nil, err
	}
	return &sandbox.ControllerPlatformResponse{Platform: reply.GetPlatform()}, nil
}
