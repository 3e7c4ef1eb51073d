package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

var errRuntime = errors.New("runtime says no")

// fails is a hook.
func fails(context.Context) error { return errRuntime }

// wantEvents compares what was published.
func (b *bench) wantEvents(want ...string) {
	b.t.Helper()
	if got := b.published(); !slices.Equal(got, want) {
		b.t.Errorf("events %q, want %q", got, want)
	}
}

// TestExitDuringStart has init end before the runtime's start has answered: the
// start is told first.
func TestExitDuringStart(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	init := b.runtime.init
	start := mustStart(t, init)
	b.runtime.hook("start", func(context.Context) error {
		if err := unix.Kill(init, unix.SIGKILL); err != nil {
			return err
		}
		for sys.Alive(init, start) {
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Fatal(status, err)
	}
	b.wantEvents("create", "start", "exit c")
}

// TestInitEndsDuringExec has init end while an exec is being started: the exec's
// start and exit come first, and no further exec is started.
func TestInitEndsDuringExec(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := errors.Join(b.start(""), b.exec("e"), b.exec("late")); err != nil {
		t.Fatal(err)
	}
	c, err := b.get("c")
	if err != nil {
		t.Fatal(err)
	}
	var late error
	b.runtime.hook("execed", func(ctx context.Context) error {
		if err := unix.Kill(b.runtime.init, unix.SIGKILL); err != nil {
			return err
		}
		for { // until the shim knows
			c.mu.Lock()
			ended := c.ended
			c.mu.Unlock()
			if ended {
				break
			}
			time.Sleep(time.Millisecond)
		}
		late = b.start("late")
		return nil
	})
	if err := b.start("e"); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(late, errdefs.ErrFailedPrecondition) {
		t.Errorf("start after the end of init: %v", late)
	}
	if status, err := b.wait("e"); err != nil || status != 137 {
		t.Error(status, err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
	b.wantEvents("create", "start", "exec-added", "exec-added", "exec-started e", "exit e", "exit c")
	if b.runtime.count("kill all") != 1 {
		t.Error("without a pid namespace of its own the others were not killed")
	}
}

// TestKillWhileStartHangs wants a kill not to wait for a call that hangs.
func TestKillWhileStartHangs(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	hangs, release := make(chan struct{}), make(chan struct{})
	b.runtime.hook("start", func(context.Context) error { close(hangs); <-release; return nil })
	started := make(chan error)
	go func() { started <- b.start("") }()
	<-hangs
	if err := b.kill(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := b.Pause(ctx, &task.PauseRequest{Id: "c"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `task "c": waiting for another call`) {
		t.Errorf("a call behind one that hangs: %v", err)
	}
	close(release)
	if err := <-started; err != nil {
		t.Error(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
	b.wantEvents("create", "start", "exit c")
}

// TestKillWithBrokenRuntime ends a process although the runtime can't.
func TestKillWithBrokenRuntime(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	b.runtime.hook("kill", fails)
	if err := b.kill(unix.SIGTERM); !errors.Is(err, errRuntime) {
		t.Error(err)
	}
	if err := b.kill(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
	if err := b.kill(unix.SIGKILL); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
}

// TestKillPaused resumes, even a pause that is under way.
func TestKillPaused(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	pausing, release := make(chan struct{}), make(chan struct{})
	b.runtime.hook("pause", func(context.Context) error { close(pausing); <-release; return nil })
	paused := make(chan error)
	go func() { _, err := b.Pause(b.ctx(), &task.PauseRequest{Id: "c"}); paused <- err }()
	<-pausing
	if answer, err := b.State(b.ctx(), &task.StateRequest{Id: "c"}); err != nil || answer.Status != wireStates[Pausing] {
		t.Error(answer, err)
	}
	killed := make(chan error)
	go func() { killed <- b.kill(unix.SIGKILL) }()
	close(release)
	if err := errors.Join(<-paused, <-killed); err != nil {
		t.Error(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
	if events := b.published(); !slices.Equal(events[:3], []string{"create", "start", "paused"}) || events[len(events)-1] != "exit c" {
		t.Errorf("events %q", events)
	}
}

// TestPauseFails leaves the task running.
func TestPauseFails(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	b.runtime.hook("pause", fails)
	if _, err := b.Pause(b.ctx(), &task.PauseRequest{Id: "c"}); !errors.Is(err, errRuntime) {
		t.Error(err)
	}
	if answer, err := b.State(b.ctx(), &task.StateRequest{Id: "c"}); err != nil || answer.Status != wireStates[Running] {
		t.Error(answer, err)
	}
	b.wantEvents("create", "start")
}

// TestDeleteAgain fails at each stage of a delete, and succeeds the next time.
func TestDeleteAgain(t *testing.T) {
	b := newBench(t, "exit 3")
	b.mustCreate()
	if _, err := b.wait(""); err != nil {
		t.Fatal(err)
	}
	b.runtime.hook("delete", fails)
	if _, err := b.delete(""); !errors.Is(err, errRuntime) {
		t.Error(err)
	}
	b.runtime.hook("delete", nil)
	busy := errors.New("busy")
	b.mu.Lock()
	b.unmount = busy
	b.mu.Unlock()
	if _, err := b.delete(""); !errors.Is(err, busy) {
		t.Error(err)
	}
	b.mu.Lock()
	b.unmount = nil
	b.mu.Unlock()
	if status, err := b.delete(""); err != nil || status != 3 {
		t.Error(status, err)
	}
	if _, err := b.delete(""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
	b.wantEvents("create", "exit c", "delete")
}

// TestDeleteCreated tells a waiter that nothing was run.
func TestDeleteCreated(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	waiting := make(chan error)
	c, p, err := b.find("c", "")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, err := c.wait(b.ctx(), p); waiting <- err }()
	b.runtime.hook("delete", fails)
	if _, err := b.delete(""); !errors.Is(err, errRuntime) {
		t.Error(err)
	}
	b.runtime.hook("delete", nil)
	if status, err := b.delete(""); err != nil || status != 0 {
		t.Error(status, err)
	}
	if err := <-waiting; !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("wait: %v", err)
	}
	b.wantEvents("create", "delete")
}

// TestCreateFails undoes what stands at each step, and works afterwards.
func TestCreateFails(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	for _, call := range []string{"create", "created"} {
		b.runtime.hook(call, fails)
		if err := b.create(); !errors.Is(err, errRuntime) || !strings.Contains(err.Error(), `task "c"`) {
			t.Errorf("%s: %v", call, err)
		}
		b.runtime.hook(call, nil)
		if b.mounted != 0 || b.runtime.count("delete") == 0 {
			t.Errorf("%s: mounted %d, deleted %d times", call, b.mounted, b.runtime.count("delete"))
		}
		if left, _ := filepath.Glob(filepath.Join(b.bundle, "*.pid")); len(left) > 0 {
			t.Errorf("%s: left %v", call, left)
		}
		b.reapInit()
	}
	// Undoing that fails is told, and does not hide the reason or its kind.
	b.runtime.hook("create", fails)
	b.runtime.hook("delete", func(context.Context) error { return context.DeadlineExceeded })
	err := b.create()
	if code := status.Code(wireError(err)); code != codes.Unknown || !strings.Contains(err.Error(), "undoing it: context deadline exceeded") {
		t.Errorf("%v: code %s", err, code)
	}
	b.runtime.hook("create", nil)
	b.runtime.hook("delete", nil)
	b.mustCreate()
	if err := b.create(); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Error(err)
	}
}

// reapInit reaps what the fake made and nobody adopted, as the sweep does.
func (b *bench) reapInit() {
	if b.runtime.init != 0 {
		_, _ = unix.Wait4(b.runtime.init, nil, 0, nil)
		b.runtime.init = 0
	}
}

// TestExecFails leaves the exec registered, without process or files, and lets
// it be tried again.
func TestExecFails(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := errors.Join(b.start(""), b.exec("e")); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"exec", "execed"} {
		b.runtime.hook(call, fails)
		if err := b.start("e"); !errors.Is(err, errRuntime) || !strings.Contains(err.Error(), `exec "e" of task "c"`) {
			t.Errorf("%s: %v", call, err)
		}
		b.runtime.hook(call, nil)
		if _, err := os.Stat(filepath.Join(b.bundle, record.ExecsDir, "e")); err == nil {
			t.Errorf("%s: files are left", call)
		}
		children, err := sys.Children(os.Getpid())
		if err != nil || len(children) != 1 {
			t.Errorf("%s: children %v, %v; want init alone", call, children, err)
		}
	}
	if err := b.start("e"); err != nil {
		t.Fatal(err)
	}
	if err := b.start("e"); err == nil {
		t.Error("started twice")
	}
	b.wantEvents("create", "start", "exec-added", "exec-started e")
}

// TestStrays reaps what a call of the runtime left, and nothing that a call
// under way may mean.
func TestStrays(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	stray, err := b.runtime.spawn(filepath.Join(t.TempDir(), "pid"), oci.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sys.OpenProcess(stray)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.runtime.hook("update", func(context.Context) error { b.sweep(); return nil })
	if _, err := b.Update(b.ctx(), &task.UpdateTaskRequest{Id: "c", Resources: specAny()}); err != nil {
		t.Fatal(err)
	}
	if !sys.Zombie(stray) {
		t.Error("swept while a call was under way")
	}
	b.sweep()
	if sys.Zombie(stray) {
		t.Error("a stray is left")
	}
	if sys.Zombie(b.runtime.init) || !sys.Alive(b.runtime.init, mustStart(t, b.runtime.init)) {
		t.Error("init was swept")
	}
}

func specAny() *anypb.Any { return &anypb.Any{Value: []byte("{}")} }

func mustStart(t *testing.T, pid int) uint64 {
	t.Helper()
	start, err := sys.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

// TestExitUnobserved has init be a process that another one waits for: the
// record says that its status is not known.
func TestExitUnobserved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	b := newBench(t, "sleep 1000 & echo $! >"+file+".tmp; mv "+file+".tmp "+file+"; wait")
	b.runtime.hook("created", func(context.Context) error {
		for {
			err := os.Rename(file, filepath.Join(b.bundle, pidFileName))
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	})
	b.mustCreate()
	_, p, err := b.find("c", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.handle.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := b.wait(""); err != nil || status != unobserved {
		t.Error(status, err)
	}
	var exit record.Exit
	if err := record.Read(b.bundle, record.ExitFile, &exit); err != nil || !strings.Contains(exit.Reason, "unobserved") {
		t.Errorf("%+v, %v", exit, err)
	}
	b.reapInit()
}

// TestExecHangsWhileInitEnds wants the exit of init to be told although the
// runtime hangs in an exec.
func TestExecHangsWhileInitEnds(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := errors.Join(b.start(""), b.exec("e")); err != nil {
		t.Fatal(err)
	}
	hangs := make(chan struct{})
	b.runtime.hook("exec", func(ctx context.Context) error { close(hangs); <-ctx.Done(); return ctx.Err() })
	started := make(chan error)
	go func() { started <- b.start("e") }()
	<-hangs
	if err := b.kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
	b.wantEvents("create", "start", "exec-added", "exit c")
}
