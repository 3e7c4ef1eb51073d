package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/runtime/record"
)

const sandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// foreignBox is the fake shim of another project as a sandbox: it serves any
// number of containers. The task API's Shutdown ends it when it has none, sandbox
// or not: nobody is to call that.
type foreignBox struct {
	foreignFake

	mu      sync.Mutex
	members map[string]foreignFake
	made    time.Time // zero before CreateSandbox
	started bool
	ended   chan struct{}
	at      time.Time
}

func newForeignBox(f foreignFake) *foreignBox {
	return &foreignBox{foreignFake: f, members: map[string]foreignFake{}, ended: make(chan struct{})}
}

// member is the container of a call; the shim itself if it has none of that id.
func (b *foreignBox) member(id string) foreignFake {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := b.members[id]; ok {
		return f
	}
	return b.foreignFake
}

// routed makes a method of the task API for all containers of the sandbox.
func routed[Q any, P interface {
	*Q
	GetId() string
}, A any](b *foreignBox, handle func(foreignFake, context.Context, P) (*A, error)) ttrpc.Method {
	return served(func(ctx context.Context, q *Q) (*A, error) { return handle(b.member(P(q).GetId()), ctx, P(q)) })
}

// tasks are the methods of the task API.
func (b *foreignBox) tasks() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"Connect": routed(b, foreignFake.Connect), "Create": served(b.create), "Start": routed(b, foreignFake.Start),
		"Delete": routed(b, foreignFake.Delete), "State": routed(b, foreignFake.State), "Exec": routed(b, foreignFake.Exec),
		"Kill": routed(b, foreignFake.Kill), "Wait": routed(b, foreignFake.Wait), "Pids": routed(b, foreignFake.listPids),
		"Stats": routed(b, foreignFake.Stats), "Shutdown": served(b.shutdown),
	}
}

func (f foreignFake) listPids(ctx context.Context, r *shimtask.PidsRequest) (*shimtask.PidsResponse, error) {
	return f.fakeShim.Pids(ctx, r)
}

// boxes are the methods of the sandbox API.
func (b *foreignBox) boxes() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"CreateSandbox": served(b.createSandbox), "StartSandbox": served(b.startSandbox), "StopSandbox": served(b.stopSandbox),
		"WaitSandbox": served(b.waitSandbox), "SandboxStatus": served(b.status), "PingSandbox": served(b.ping),
		"ShutdownSandbox": served(b.shutdownSandbox), "SandboxMetrics": served(b.metrics), "Platform": served(b.platform),
	}
}

func (b *foreignBox) create(ctx context.Context, r *shimtask.CreateTaskRequest) (*shimtask.CreateTaskResponse, error) {
	dir := filepath.Join(filepath.Dir(b.dir), r.GetId())
	f := foreignFake{fakeShim: &fakeShim{ns: b.ns, id: r.GetId(), dir: dir}, script: b.script}
	data, err := os.ReadFile(filepath.Join(r.GetBundle(), record.ConfigFile))
	if err == nil {
		err = json.Unmarshal(data, &f.fakeShim.script)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.members[f.id] = f
	b.mu.Unlock()
	return f.Create(ctx, r)
}

// busy tells whether the sandbox has a container. Needs mu.
func (b *foreignBox) busy() bool {
	for _, f := range b.members {
		f.fakeShim.mu.Lock()
		there := f.procs != nil || len(f.queue) > 0
		f.fakeShim.mu.Unlock()
		if there {
			return true
		}
	}
	return false
}

func (b *foreignBox) shutdown(context.Context, *shimtask.ShutdownRequest) (*emptypb.Empty, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.busy() {
		os.Exit(0)
	}
	return &emptypb.Empty{}, nil
}

// sandbox checks that there is one of that id. Needs mu.
func (b *foreignBox) sandbox(id string) error {
	if b.made.IsZero() || id != b.id {
		return errgrpc.ToGRPC(fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound))
	}
	return nil
}

func (b *foreignBox) createSandbox(_ context.Context, r *shimbox.CreateSandboxRequest) (*shimbox.CreateSandboxResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cwd, err := os.Getwd(); err != nil || r.GetBundlePath() != cwd || r.GetSandboxId() != b.id {
		return nil, fmt.Errorf("sandbox %q in %q, this is %q in %q: %v", r.GetSandboxId(), r.GetBundlePath(), b.id, cwd, err)
	}
	if b.script.Mode == "fail" {
		return nil, errors.New("no such sandbox can be made")
	}
	b.made = time.Now()
	return &shimbox.CreateSandboxResponse{}, nil
}

func (b *foreignBox) startSandbox(_ context.Context, r *shimbox.StartSandboxRequest) (*shimbox.StartSandboxResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.sandbox(r.GetSandboxId()); err != nil {
		return nil, err
	}
	b.started = true
	return &shimbox.StartSandboxResponse{Pid: b.told(uint32(os.Getpid())), CreatedAt: timestamppb.New(b.made)}, nil
}

func (b *foreignBox) stopSandbox(_ context.Context, r *shimbox.StopSandboxRequest) (*shimbox.StopSandboxResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.sandbox(r.GetSandboxId()); err != nil {
		return nil, err
	}
	select {
	case <-b.ended:
	default:
		b.at = time.Now()
		close(b.ended)
	}
	return &shimbox.StopSandboxResponse{}, nil
}

func (b *foreignBox) waitSandbox(_ context.Context, r *shimbox.WaitSandboxRequest) (*shimbox.WaitSandboxResponse, error) {
	b.mu.Lock()
	err := b.sandbox(r.GetSandboxId())
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	<-b.ended
	return &shimbox.WaitSandboxResponse{ExitStatus: 9, ExitedAt: timestamppb.New(b.at)}, nil
}

func (b *foreignBox) status(_ context.Context, r *shimbox.SandboxStatusRequest) (*shimbox.SandboxStatusResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state := "SANDBOX_NOTREADY"
	if b.started {
		state = "SANDBOX_READY"
	}
	return &shimbox.SandboxStatusResponse{
		SandboxId: b.id, State: state, Info: map[string]string{"who": "fake"}, CreatedAt: timestamppb.New(b.made),
	}, b.sandbox(r.GetSandboxId())
}

func (b *foreignBox) ping(_ context.Context, r *shimbox.PingRequest) (*shimbox.PingResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &shimbox.PingResponse{}, b.sandbox(r.GetSandboxId())
}

func (b *foreignBox) metrics(context.Context, *shimbox.SandboxMetricsRequest) (*shimbox.SandboxMetricsResponse, error) {
	return &shimbox.SandboxMetricsResponse{Metrics: &types.Metric{Id: b.id}}, nil
}

func (b *foreignBox) platform(context.Context, *shimbox.PlatformRequest) (*shimbox.PlatformResponse, error) {
	return &shimbox.PlatformResponse{Platform: &types.Platform{Os: "linux", Architecture: "fake"}}, nil
}

// shutdownSandbox ends the shim, once its answer is out.
func (b *foreignBox) shutdownSandbox(_ context.Context, r *shimbox.ShutdownSandboxRequest) (*shimbox.ShutdownSandboxResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.sandbox(r.GetSandboxId()); err != nil {
		return nil, err
	}
	if b.script.Mode != "stay" {
		go func() {
			time.Sleep(10 * time.Millisecond)
			os.Exit(0)
		}()
	}
	return &shimbox.ShutdownSandboxResponse{}, nil
}

// otherProtocol is a client of a shim that says it speaks gRPC: what lies beneath
// is not this package's business, so here it is ttrpc.
type otherProtocol struct {
	taskttrpc.TaskService
	sandboxttrpc.SandboxService
	client *ttrpc.Client
	done   chan struct{}
}

func (o *otherProtocol) Done() <-chan struct{} { return o.done }

func (o *otherProtocol) Close() error { return o.client.Close() }

func otherClient(raw net.Conn) (ShimClient, error) {
	o := &otherProtocol{done: make(chan struct{})}
	o.client = ttrpc.NewClient(raw, ttrpc.WithOnClose(func() { close(o.done) }))
	o.TaskService, o.SandboxService = taskttrpc.NewTaskClient(o.client), sandboxttrpc.NewSandboxClient(o.client)
	return o, nil
}
