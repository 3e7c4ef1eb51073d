package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/types"
)

// makeSandbox creates and starts a sandbox.
func (d *daemon) makeSandbox(id string) {
	d.m.t.Helper()
	ctx := d.m.t.Context()
	if err := d.CreateSandbox(ctx, testNS, &sandbox.ControllerCreateRequest{SandboxId: id, Sandbox: &types.Sandbox{SandboxId: id}}); err != nil {
		d.m.t.Fatal(err)
	}
	reply, err := d.StartSandbox(ctx, testNS, &sandbox.ControllerStartRequest{SandboxId: id})
	if err != nil || reply.GetSandboxId() != id {
		d.m.t.Fatalf("%v, %v", reply, err)
	}
}

// sandboxState is what the status of a sandbox says.
func (d *daemon) sandboxState(id string) string {
	reply, err := d.SandboxStatus(d.m.t.Context(), testNS, &sandbox.ControllerStatusRequest{SandboxId: id})
	if err != nil {
		return err.Error()
	}
	return reply.GetState()
}

// sandboxGone fails the test over anything that is left of a sandbox.
func (d *daemon) sandboxGone(id string) {
	d.m.t.Helper()
	for _, path := range []string{filepath.Join(d.m.dir, sandboxesDir, testNS, id), groupSocket(d.m.dir, testNS, id)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			d.m.t.Errorf("%s: %v", path, err)
		}
	}
}

// TestSandbox leads a sandbox with containers through its life, over a daemon
// that ends in the middle.
func TestSandbox(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	ctx := t.Context()
	d.makeSandbox("p")
	if err := d.CreateSandbox(ctx, testNS, &sandbox.ControllerCreateRequest{SandboxId: "p"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := d.StartSandbox(ctx, testNS, &sandbox.ControllerStartRequest{SandboxId: "none"}); !errdefs.IsNotFound(err) {
		t.Errorf("start of none: %v", err)
	}
	if got := d.sandboxState("p"); got != "SANDBOX_READY" {
		t.Error(got)
	}
	d.runPod("p", "a", "b")
	d.endPod("a")
	d.endPod("b")
	if got := d.sandboxState("p"); got != "SANDBOX_READY" { // its shim stays without containers
		t.Error(got)
	}
	d.stop()
	d = m.start()
	d.runPod("p", "c")
	if got := d.sandboxState("p"); got != "SANDBOX_READY" {
		t.Error(got)
	}
	waited := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := d.WaitSandbox(ctx, testNS, &sandbox.ControllerWaitRequest{SandboxId: "p"})
		waited <- err
	}()
	d.endPod("c")
	if err := d.StopSandbox(ctx, testNS, &sandbox.ControllerStopRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if got := d.sandboxState("p"); got != "SANDBOX_NOTREADY" {
		t.Error(got)
	}
	if err := d.ShutdownSandbox(ctx, testNS, &sandbox.ControllerShutdownRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	d.sandboxGone("p")
	if err := d.StopSandbox(ctx, testNS, &sandbox.ControllerStopRequest{SandboxId: "p"}); err != nil {
		t.Errorf("stop of one that is gone: %v", err)
	}
	if reply, err := d.SandboxStatus(ctx, testNS, &sandbox.ControllerStatusRequest{SandboxId: "p"}); err != nil || reply.GetExitedAt() == nil || reply.GetState() != "" {
		t.Errorf("status of one that is gone: %v, %v", reply, err)
	}
	d.makeSandbox("p") // and anew
	if err := d.ShutdownSandbox(ctx, testNS, &sandbox.ControllerShutdownRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	d.sandboxGone("p")
}

// TestSandboxShimKilled kills the shim of a sandbox, once under the daemon and
// once while there is none: the sandbox has ended.
func TestSandboxShimKilled(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	for _, away := range []bool{false, true} {
		d.makeSandbox("p")
		pid := d.boxes[name{testNS, "p"}].view().shimPID
		if away {
			d.stop()
			m.shims = append(m.shims, pid)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if away {
			d = m.start()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := d.WaitSandbox(ctx, testNS, &sandbox.ControllerWaitRequest{SandboxId: "p"}); err != nil {
			t.Errorf("away %t: %v", away, err)
		}
		cancel()
		if got := d.sandboxState("p"); got != "SANDBOX_NOTREADY" {
			t.Errorf("away %t: %s", away, got)
		}
		if err := d.ShutdownSandbox(t.Context(), testNS, &sandbox.ControllerShutdownRequest{SandboxId: "p"}); err != nil {
			t.Errorf("away %t: %v", away, err)
		}
		d.sandboxGone("p")
	}
}

// TestSandboxRefused asks for sandboxes that can't be made.
func TestSandboxRefused(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	broken := m.scripted("box", "true")
	for id, c := range map[string]struct {
		runtime string
		kind    func(error) bool
	}{
		"a/b":     {"", errdefs.IsInvalidArgument},
		"broken":  {broken, func(err error) bool { return err != nil && strings.Contains(err.Error(), "printed no address") }},
		"missing": {"io.containerd.nosuch.v1", func(err error) bool { return err != nil && strings.Contains(err.Error(), "is not installed") }},
	} {
		err := d.CreateSandbox(t.Context(), testNS, &sandbox.ControllerCreateRequest{
			SandboxId: id, Sandbox: &types.Sandbox{Runtime: &types.Sandbox_Runtime{Name: c.runtime}},
		})
		if !c.kind(err) {
			t.Errorf("%s: %v", id, err)
		}
		d.sandboxGone(id)
	}
}
