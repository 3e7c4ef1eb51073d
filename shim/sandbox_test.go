package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	api "github.com/berthd/berth/api/runtime/sandbox/v1"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/runtime/record"
)

const podID = "pod"

// makeSandbox makes the shim the sandbox podID, in a bundle of its own.
func (b *bench) makeSandbox() (bundle string) {
	b.t.Helper()
	bundle = b.t.TempDir()
	_, err := b.CreateSandbox(b.ctx(), &api.CreateSandboxRequest{
		SandboxId: podID, BundlePath: bundle, Rootfs: []*types.Mount{{Type: "bind", Source: "/"}}, NetnsPath: "/run/netns/x",
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return bundle
}

// readySandbox makes and starts the sandbox.
func (b *bench) readySandbox() (bundle string) {
	b.t.Helper()
	bundle = b.makeSandbox()
	answer, err := b.StartSandbox(b.ctx(), &api.StartSandboxRequest{SandboxId: podID})
	if err != nil || int(answer.Pid) != os.Getpid() || time.Since(answer.CreatedAt.AsTime()) > time.Minute {
		b.t.Fatal(answer, err)
	}
	return bundle
}

// sandboxStatus gives the status of the sandbox.
func (b *bench) sandboxStatus() *api.SandboxStatusResponse {
	b.t.Helper()
	answer, err := b.SandboxStatus(b.ctx(), &api.SandboxStatusRequest{SandboxId: podID, Verbose: true})
	if err != nil {
		b.t.Fatal(err)
	}
	return answer
}

func (b *bench) stopSandbox(seconds uint32) error {
	_, err := b.StopSandbox(b.ctx(), &api.StopSandboxRequest{SandboxId: podID, TimeoutSecs: seconds})
	return err
}

func (b *bench) shutdownSandbox() error {
	_, err := b.ShutdownSandbox(b.ctx(), &api.ShutdownSandboxRequest{SandboxId: podID})
	return err
}

// hasLeft tells whether the shim leaves.
func (b *bench) hasLeft() bool {
	select {
	case <-b.Left():
		return true
	default:
		return false
	}
}

// TestSandboxLife leads a sandbox without containers through its life.
func TestSandboxLife(t *testing.T) {
	b := newBench(t, "true")
	bundle := b.makeSandbox()
	if got := b.sandboxStatus(); got.State != "SANDBOX_NOTREADY" || got.Pid != 0 || got.ExitedAt != nil || got.Info["netns"] != "/run/netns/x" {
		t.Errorf("created: %v", got)
	}
	if _, err := b.StartSandbox(b.ctx(), &api.StartSandboxRequest{SandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	if got := b.sandboxStatus(); got.State != "SANDBOX_READY" || int(got.Pid) != os.Getpid() || got.ExitedAt != nil {
		t.Errorf("ready: %v", got)
	}
	if answer, err := b.Platform(b.ctx(), &api.PlatformRequest{SandboxId: podID}); err != nil || answer.Platform.Os != "linux" || answer.Platform.Architecture == "" {
		t.Error(answer, err)
	}
	if answer, err := b.SandboxMetrics(b.ctx(), &api.SandboxMetricsRequest{SandboxId: podID}); err != nil || answer.Metrics.Id != podID || answer.Metrics.Data != nil {
		t.Error(answer, err)
	}
	if _, err := b.PingSandbox(b.ctx(), &api.PingRequest{SandboxId: podID}); err != nil {
		t.Error(err)
	}
	if _, err := b.Shutdown(b.ctx(), &task.ShutdownRequest{}); err != nil || b.hasLeft() {
		t.Errorf("a sandbox without containers leaves at the Shutdown of a task: %v", err)
	}
	waited := make(chan *api.WaitSandboxResponse)
	for range 2 {
		go func() {
			answer, err := b.WaitSandbox(b.ctx(), &api.WaitSandboxRequest{SandboxId: podID})
			if err != nil {
				t.Error(err)
			}
			waited <- answer
		}()
	}
	if err := errors.Join(b.stopSandbox(0), b.stopSandbox(0)); err != nil {
		t.Fatal(err)
	}
	stopped := b.sandboxStatus()
	if stopped.State != "SANDBOX_NOTREADY" || stopped.ExitedAt == nil || stopped.Pid != 0 {
		t.Errorf("stopped: %v", stopped)
	}
	for range 2 {
		if answer := <-waited; answer.GetExitStatus() != 0 || !answer.GetExitedAt().AsTime().Equal(stopped.ExitedAt.AsTime()) {
			t.Errorf("wait answers %v, status %v", answer, stopped)
		}
	}
	var exit record.Exit
	if err := record.Read(bundle, record.ExitFile, &exit); err != nil || !exit.ExitedAt.Equal(stopped.ExitedAt.AsTime()) {
		t.Error(exit, err)
	}
	if err := b.shutdownSandbox(); err != nil || !b.hasLeft() {
		t.Error(err)
	}
}

// TestSandboxRefusals has every call come when it is not for it.
func TestSandboxRefusals(t *testing.T) {
	b := newBench(t, "true")
	create := func(id, bundle string) error {
		_, err := b.CreateSandbox(b.ctx(), &api.CreateSandboxRequest{SandboxId: id, BundlePath: bundle})
		return err
	}
	start := func() error {
		_, err := b.StartSandbox(b.ctx(), &api.StartSandboxRequest{SandboxId: podID})
		return err
	}
	ping := func() error { _, err := b.PingSandbox(b.ctx(), &api.PingRequest{SandboxId: podID}); return err }
	wants := func(what string, err, kind error, text string) {
		t.Helper()
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %v with %q", what, err, kind, text)
		}
	}
	wants("bad id", create("a b", b.bundle), errdefs.ErrInvalidArgument, "a b")
	wants("relative bundle", create(podID, "x"), errdefs.ErrInvalidArgument, "absolute")
	none := map[string]func() error{
		"start": start, "ping": ping, "stop": func() error { return b.stopSandbox(0) },
		"platform": func() error { _, err := b.Platform(b.ctx(), &api.PlatformRequest{SandboxId: podID}); return err },
		"wait":     func() error { _, err := b.WaitSandbox(b.ctx(), &api.WaitSandboxRequest{SandboxId: podID}); return err },
		"status": func() error {
			_, err := b.SandboxStatus(b.ctx(), &api.SandboxStatusRequest{SandboxId: podID})
			return err
		},
		"metrics": func() error {
			_, err := b.SandboxMetrics(b.ctx(), &api.SandboxMetricsRequest{SandboxId: podID})
			return err
		},
	}
	for name, do := range none {
		wants(name, do(), errdefs.ErrNotFound, podID)
	}
	b.readySandbox()
	wants("create again", create(podID, b.bundle), errdefs.ErrAlreadyExists, podID)
	wants("create another", create("other", b.bundle), errdefs.ErrFailedPrecondition, "is the sandbox \"pod\"")
	wants("start again", start(), errdefs.ErrFailedPrecondition, "started already")
	_, err := b.ShutdownSandbox(b.ctx(), &api.ShutdownSandboxRequest{SandboxId: "other"})
	wants("shut down another", err, errdefs.ErrNotFound, "other")
	if err := b.stopSandbox(0); err != nil {
		t.Fatal(err)
	}
	wants("start of a stopped one", start(), errdefs.ErrFailedPrecondition, "was stopped")
	wants("ping of a stopped one", ping(), errdefs.ErrFailedPrecondition, "was stopped")
	wants("task of a stopped one", b.create(), errdefs.ErrFailedPrecondition, "was stopped")
	if err := b.shutdownSandbox(); err != nil {
		t.Fatal(err)
	}
	wants("create in a shim that leaves", create(podID, b.bundle), errdefs.ErrUnavailable, "shutting down")
}

// TestSandboxStop ends the containers: with SIGTERM those that heed it, with
// SIGKILL those that don't.
func TestSandboxStop(t *testing.T) {
	for _, c := range []struct {
		name, script string
		seconds      uint32
		status       uint32
	}{
		{"at once", `trap "exit 3" TERM; touch "$0"; while :; do sleep 0.01; done`, 0, 137},
		{"heeds", `trap "exit 3" TERM; touch "$0"; while :; do sleep 0.01; done`, 20, 3},
		{"does not", `trap "" TERM; touch "$0"; while :; do sleep 0.01; done`, 1, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			ready := filepath.Join(t.TempDir(), "ready")
			b := newBench(t, c.script)
			b.runtime.argv = append(b.runtime.argv, ready)
			b.readySandbox()
			b.mustCreate()
			if err := b.start(""); err != nil {
				t.Fatal(err)
			}
			for _, err := os.Stat(ready); err != nil; _, err = os.Stat(ready) {
				time.Sleep(time.Millisecond)
			}
			if err := b.stopSandbox(c.seconds); err != nil {
				t.Fatal(err)
			}
			if status, err := b.wait(""); err != nil || status != c.status {
				t.Error(status, err)
			}
			if got := b.sandboxStatus(); got.State != "SANDBOX_NOTREADY" || got.Info["containers"] != "c" {
				t.Error(got)
			}
			if err := b.shutdownSandbox(); err != nil || b.hasLeft() {
				t.Errorf("with a container that was not deleted: %v, left %t", err, b.hasLeft())
			}
			if _, err := b.delete(""); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Shutdown(b.ctx(), &task.ShutdownRequest{}); err != nil || !b.hasLeft() {
				t.Errorf("after the last container: %v", err)
			}
		})
	}
}

// TestSandboxStopDuringCreate stops a sandbox while a container is being made: it
// ends with the others.
func TestSandboxStopDuringCreate(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.readySandbox()
	stopped := make(chan error, 1)
	b.runtime.hook("created", func(context.Context) error {
		go func() { stopped <- b.stopSandbox(0) }()
		for {
			b.Shim.mu.Lock()
			closing := b.sandbox.closing
			b.Shim.mu.Unlock()
			if closing {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
	})
	b.mustCreate()
	if err := errors.Join(<-stopped, b.shutdownSandbox()); err != nil {
		t.Fatal(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		t.Error(status, err)
	}
}

// TestSandboxStopFails has the runtime refuse to kill: the stop can be repeated.
func TestSandboxStopFails(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.readySandbox()
	b.mustCreate()
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	b.runtime.hook("kill", func(context.Context) error { return errRuntime })
	if err := b.stopSandbox(0); err != nil { // the kernel does what the runtime does not
		t.Fatal(err)
	}
	if got := b.sandboxStatus(); got.State != "SANDBOX_NOTREADY" || got.ExitedAt == nil {
		t.Error(got)
	}
	if _, err := b.delete(""); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.unmount = errRuntime
	b.mu.Unlock()
	if err := b.shutdownSandbox(); !errors.Is(err, errRuntime) || b.hasLeft() {
		t.Errorf("shutdown with a mount that stays: %v", err)
	}
	b.mu.Lock()
	b.unmount = nil
	b.mu.Unlock()
	if err := b.shutdownSandbox(); err != nil || !b.hasLeft() {
		t.Errorf("shutdown, again: %v", err)
	}
}

// TestSandboxClaims has the bundle of a sandbox be claimed like that of a container.
func TestSandboxClaims(t *testing.T) {
	b := newBench(t, "true")
	b.config.Claim = true
	bundle := b.makeSandbox()
	if claim, err := Claim(bundle); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("the bundle is claimed twice: %v", err)
		_ = claim.Close()
	}
	if err := b.shutdownSandbox(); err != nil {
		t.Fatal(err)
	}
	claim, err := Claim(bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	other := newBench(t, "true")
	other.config.Claim = true
	_, err = other.CreateSandbox(other.ctx(), &api.CreateSandboxRequest{SandboxId: podID, BundlePath: bundle})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("create in the bundle of another: %v", err)
	}
	if err := other.shutdownSandbox(); err != nil || !other.hasLeft() {
		t.Errorf("after a create that failed: %v", err)
	}
}
