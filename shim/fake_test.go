package shim

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// fakeRuntime makes real processes, children of the test as a runtime's are of
// the shim, and does what a test tells it before it answers a call.
type fakeRuntime struct {
	t *testing.T

	mu    sync.Mutex
	hooks map[string]func(ctx context.Context) error
	calls []string
	init  int
	argv  []string

	dumped   oci.CheckpointOptions
	restored oci.RestoreOptions
}

// hook sets what happens at a call; nil takes it away.
func (r *fakeRuntime) hook(call string, do func(ctx context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks[call] = do
}

// called counts a call and runs its hook.
func (r *fakeRuntime) called(ctx context.Context, call string) error {
	r.mu.Lock()
	r.calls = append(r.calls, call)
	do := r.hooks[call]
	r.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx)
}

// count tells how often a call was made.
func (r *fakeRuntime) count(call string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.calls {
		if c == call {
			n++
		}
	}
	return n
}

// spawn starts a process and writes its pid.
func (r *fakeRuntime) spawn(pidFile string, stdio oci.Stdio) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	fds := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	for i, f := range []*os.File{stdio.In, stdio.Out, stdio.Err} {
		if f != nil {
			fds[i] = f.Fd()
		}
	}
	pid, err := syscall.ForkExec("/bin/sh", append([]string{"sh", "-c"}, r.argv...), &syscall.ProcAttr{Files: fds, Env: os.Environ()})
	if err != nil {
		return 0, err
	}
	return pid, os.WriteFile(pidFile, []byte(strconv.Itoa(pid)), 0o600)
}

func (r *fakeRuntime) Create(ctx context.Context, _ string, o oci.CreateOptions) (err error) {
	if err := r.called(ctx, "create"); err != nil {
		return err
	}
	r.init, err = r.spawn(o.PIDFile, o.Stdio)
	return errors.Join(err, r.called(ctx, "created"))
}

func (r *fakeRuntime) Start(ctx context.Context, _ string) error { return r.called(ctx, "start") }

func (r *fakeRuntime) Exec(ctx context.Context, _ string, o oci.ExecOptions) error {
	if err := r.called(ctx, "exec"); err != nil {
		return err
	}
	_, err := r.spawn(o.PIDFile, o.Stdio)
	return errors.Join(err, r.called(ctx, "execed"))
}

func (r *fakeRuntime) Kill(ctx context.Context, _ string, sig unix.Signal, all bool) error {
	call := "kill"
	if all {
		call = "kill all"
	}
	if err := r.called(ctx, call); err != nil {
		return err
	}
	return unix.Kill(r.init, sig)
}

func (r *fakeRuntime) Delete(ctx context.Context, _ string, _ bool) error {
	if err := r.called(ctx, "delete"); err != nil {
		return err
	}
	if r.init != 0 {
		_ = unix.Kill(r.init, unix.SIGKILL)
	}
	return nil
}

func (r *fakeRuntime) Pause(ctx context.Context, _ string) error  { return r.called(ctx, "pause") }
func (r *fakeRuntime) Resume(ctx context.Context, _ string) error { return r.called(ctx, "resume") }
func (r *fakeRuntime) Update(ctx context.Context, _ string, _ []byte) error {
	return r.called(ctx, "update")
}

func (r *fakeRuntime) Checkpoint(ctx context.Context, _ string, o oci.CheckpointOptions) error {
	r.mu.Lock()
	r.dumped = o
	r.mu.Unlock()
	return r.called(ctx, "checkpoint")
}

func (r *fakeRuntime) Restore(ctx context.Context, _ string, o oci.RestoreOptions) (err error) {
	r.mu.Lock()
	r.restored = o
	r.mu.Unlock()
	if err := r.called(ctx, "restore"); err != nil {
		return err
	}
	r.init, err = r.spawn(o.PIDFile, o.Stdio)
	return errors.Join(err, r.called(ctx, "is restored"))
}

// bench is a shim with a fake runtime and a bundle.
type bench struct {
	*Shim
	t       *testing.T
	runtime *fakeRuntime
	bundle  string

	mu      sync.Mutex
	events  []string
	mounted int
	// unmount fails with it, if set.
	unmount error
}

// newBench makes the shim. The processes of its container run script.
func newBench(t *testing.T, script string) *bench {
	t.Helper()
	leak.Check(t)
	b := &bench{t: t, bundle: t.TempDir(), runtime: &fakeRuntime{t: t, hooks: map[string]func(context.Context) error{}, argv: []string{script}}}
	b.Shim = New(Config{
		Namespace: "test",
		Publish:   b.publish,
		Log:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Runtime:   func(record.Runtime, string) Runtime { return b.runtime },
		Mounter: &Mounter{
			Mount: func([]mount.Mount, string) error {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.mounted++
				return nil
			},
			Unmount: func(string) error {
				b.mu.Lock()
				defer b.mu.Unlock()
				if b.unmount == nil {
					b.mounted--
				}
				return b.unmount
			},
		},
	})
	t.Cleanup(b.end)
	return b
}

type testWriter struct{ t *testing.T }

// Write logs to the test.
func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// end kills and deletes what the test left, and waits for the shim's goroutines.
func (b *bench) end() {
	for name := range b.runtime.hooks {
		b.runtime.hook(name, nil)
	}
	b.mu.Lock()
	b.unmount = nil
	b.mu.Unlock()
	if c, err := b.get("c"); err == nil {
		for _, p := range c.execsIn(Running) {
			_ = p.handle.Signal(unix.SIGKILL)
		}
		if b.runtime.init != 0 { // which would be the test's own group
			_ = unix.Kill(b.runtime.init, unix.SIGKILL)
		}
		if _, err := b.Wait(b.ctx(), &task.WaitRequest{Id: "c"}); err != nil {
			b.t.Errorf("wait: %v", err)
		}
		if _, err := b.Delete(b.ctx(), &task.DeleteRequest{Id: "c"}); err != nil {
			b.t.Errorf("delete: %v", err)
		}
	}
	b.watchers.Wait()
	b.trim.timer.Stop()
	if b.sweeper != nil {
		b.sweeper.Stop()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mounted != 0 {
		b.t.Errorf("mounts are left: %d", b.mounted)
	}
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

// publish notes an event as its topic and id.
func (b *bench) publish(topic string, event proto.Message) {
	text := filepath.Base(topic)
	switch e := event.(type) {
	case *apievents.TaskExit:
		text += " " + e.Id
	case *apievents.TaskExecStarted:
		text += " " + e.ExecId
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, text)
}

func (b *bench) published() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.events...)
}

// create creates the task "c" with one mount.
func (b *bench) create() error {
	_, err := b.Create(b.ctx(), &task.CreateTaskRequest{Id: "c", Bundle: b.bundle, Rootfs: []*types.Mount{{Type: "bind", Source: "/"}}})
	return err
}

func (b *bench) mustCreate() {
	b.t.Helper()
	if err := b.create(); err != nil {
		b.t.Fatal(err)
	}
}

// start starts a process of the task.
func (b *bench) start(exec string) error {
	_, err := b.Start(b.ctx(), &task.StartRequest{Id: "c", ExecId: exec})
	return err
}

// exec registers an exec.
func (b *bench) exec(id string) error {
	_, err := b.Exec(b.ctx(), &task.ExecProcessRequest{Id: "c", ExecId: id, Spec: &anypb.Any{Value: []byte("{}")}})
	return err
}

func (b *bench) kill(sig unix.Signal) error {
	_, err := b.Kill(b.ctx(), &task.KillRequest{Id: "c", Signal: uint32(sig)})
	return err
}

func (b *bench) wait(exec string) (uint32, error) {
	answer, err := b.Wait(b.ctx(), &task.WaitRequest{Id: "c", ExecId: exec})
	return answer.GetExitStatus(), err
}

func (b *bench) delete(exec string) (uint32, error) {
	answer, err := b.Delete(b.ctx(), &task.DeleteRequest{Id: "c", ExecId: exec})
	return answer.GetExitStatus(), err
}
