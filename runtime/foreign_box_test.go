package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// createForeignBox creates a sandbox with the fake shim of another project.
func (d *daemon) createForeignBox(id, shim string, s foreignScript) error {
	spec, _ := json.Marshal(s)
	return d.CreateSandbox(d.m.t.Context(), testNS, &sandbox.ControllerCreateRequest{SandboxId: id, Sandbox: &types.Sandbox{
		SandboxId: id, Runtime: &types.Sandbox_Runtime{Name: shim}, Spec: &anypb.Any{TypeUrl: "spec", Value: spec},
	}})
}

// makeForeignBox creates and starts one, and gives where it serves the task API.
func (d *daemon) makeForeignBox(id, shim string, s foreignScript) (address string) {
	d.m.t.Helper()
	s.Sandbox = true
	if err := d.createForeignBox(id, shim, s); err != nil {
		d.m.t.Fatal(err)
	}
	reply, err := d.StartSandbox(d.m.t.Context(), testNS, &sandbox.ControllerStartRequest{SandboxId: id})
	if err != nil || reply.GetSandboxId() != id || reply.GetVersion() != uint32(max(s.Version, taskV2)) {
		d.m.t.Fatalf("%v, %v", reply, err)
	}
	return reply.GetAddress()
}

// join creates and starts a container that joins by address, or by the sandbox of
// its record.
func (d *daemon) join(id, shim, box, address string, args ...string) error {
	c := foreignContainer(id, shim, foreignScript{Args: args})
	c.Sandbox = box
	if _, err := d.Create(d.m.t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: id, TaskApiAddress: address}); err != nil {
		return err
	}
	_, err := d.Start(d.m.t.Context(), testNS, &tasks.StartRequest{ContainerId: id})
	return err
}

func (d *daemon) boxShim(id string) int { return d.boxes[name{testNS, id}].view().shimPID }

// shutBox ends a sandbox and fails the test over what is left.
func (d *daemon) shutBox(id string) {
	d.m.t.Helper()
	if err := d.ShutdownSandbox(d.m.t.Context(), testNS, &sandbox.ControllerShutdownRequest{SandboxId: id}); err != nil {
		d.m.t.Errorf("shut down: %v", err)
	}
	d.boxGone(id)
}

func (d *daemon) boxGone(id string) {
	d.m.t.Helper()
	d.sandboxGone(id)
	if _, err := os.Lstat(filepath.Join(d.m.dir, "root", sandboxesDir, testNS, id)); !errors.Is(err, os.ErrNotExist) {
		d.m.t.Errorf("its work directory: %v", err)
	}
	d.m.eventually("no process left", func() error { return d.m.aliveForeign(id) })
}

// TestForeignSandbox leads a sandbox under another's shim through its life, over a
// daemon that ends in the middle, with containers that join it in each way.
func TestForeignSandbox(t *testing.T) {
	for name, c := range map[string]foreignScript{
		"ttrpc-2": {Version: 2}, "ttrpc-3": {Version: 3}, "says-3": {Version: 3, Serves: 2},
		"grpc": {Version: 3, Protocol: protocolGRPC, Answer: "proto"}, "guest": {Version: 3, Pids: "none"},
	} {
		t.Run(name, func(t *testing.T) {
			m := impatient(t)
			m.t = t
			shim := m.fakeForeign()
			d := m.start()
			if name == "says-3" { // it is asked anew by version 2
				c.Version = 3
				if err := d.createForeignBox("p", shim, foreignScript{Version: 3, Serves: 2, Sandbox: true}); err != nil {
					t.Fatal(err)
				}
				if got := d.boxes[nameOf("p")].contact().Version; got != taskV2 {
					t.Errorf("speaks version %d", got)
				}
				d.shutBox("p")
				return
			}
			foreignSandboxLife(t, m, d, shim, c)
		})
	}
}

func nameOf(id string) name { return name{testNS, id} }

func foreignSandboxLife(t *testing.T, m *machine, d *daemon, shim string, s foreignScript) {
	ctx := t.Context()
	address := d.makeForeignBox("p", shim, s)
	if err := d.createForeignBox("p", shim, s); !errdefs.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	ways := map[string][2]string{"by-address": {"", address}, "by-both": {"p", address}}
	if s.Version == taskV3 {
		ways["by-record"] = [2]string{"p", ""}
	}
	for id, way := range ways {
		if err := d.join(id, shim, way[0], way[1], "sh", "-c", "exit 4"); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		var made record.Shim
		if err := record.Read(m.bundle(id), record.ShimFile, &made); err != nil || made.PID != d.boxShim("p") {
			t.Errorf("%s: shim %+v, %v, that of the sandbox is %d", id, made, err, d.boxShim("p"))
		}
		if joined, err := os.ReadFile(filepath.Join(m.bundle(id), sandboxFile)); err != nil || string(joined) != "p" {
			t.Errorf("%s: file %q, %v", id, joined, err)
		}
		d.end(id, 4)
		m.goneForeign(id)
	}
	if got := d.sandboxState("p"); got != "SANDBOX_READY" { // it stays without containers
		t.Error(got)
	}
	if err := d.join("stays", shim, "", address, "sh", "-c", "sleep 0.3; exit 6"); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = m.start()
	d.verdict("stays", "connected")
	if got := d.sandboxState("p"); got != "SANDBOX_READY" {
		t.Error(got)
	}
	if err := d.join("later", shim, "", address, "true"); err != nil {
		t.Fatal(err)
	}
	d.end("later", 0)
	d.end("stays", 6)
	if r, err := d.SandboxMetrics(ctx, testNS, &sandbox.ControllerMetricsRequest{SandboxId: "p"}); err != nil || r.GetMetrics().GetId() != "p" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := d.SandboxPlatform(ctx, testNS, &sandbox.ControllerPlatformRequest{SandboxId: "p"}); err != nil || r.GetPlatform().GetArchitecture() != "fake" {
		t.Errorf("%v, %v", r, err)
	}
	waited := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := d.WaitSandbox(ctx, testNS, &sandbox.ControllerWaitRequest{SandboxId: "p"})
		waited <- err
	}()
	if err := d.StopSandbox(ctx, testNS, &sandbox.ControllerStopRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := d.join("late", shim, "p", address, "true"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("joined a sandbox that has ended: %v", err)
	}
	d.shutBox("p")
}

// TestForeignSandboxBreaks has the shim of a sandbox hang or die at each step:
// each call says so in time, and nothing of the sandbox is left, at the latest once
// a shim that hangs was killed.
func TestForeignSandboxBreaks(t *testing.T) {
	m := impatient(t)
	m.deadlines.Control, m.deadlines.Create, m.deadlines.Start = time.Second, time.Second, time.Second
	m.deadlines.Shutdown = 500 * time.Millisecond
	shim := m.fakeForeign()
	d := m.start()
	for step, want := range map[string]string{
		"start": "create: ", "start+": "create: ", "serve": "create: ", "Connect": "create: tell its pid", "Connect+": "create: tell its pid",
		"CreateSandbox": "create: create the sandbox", "CreateSandbox+": "create: create the sandbox",
		"StartSandbox": "start: start the sandbox", "StartSandbox+": "start: start the sandbox",
		"SandboxStatus": "status: tell the sandbox's state", "WaitSandbox": "", "StopSandbox": "stop: stop the sandbox",
		"StopSandbox+": "stop: stop the sandbox", "ShutdownSandbox": "shutdown: shut the sandbox down", "ShutdownSandbox+": "any", // it has told itself to leave: that comes first, or the deadline
		"delete": "",
	} {
		for _, way := range []string{"die", "hang"} {
			id := strings.ToLower(strings.TrimSuffix(step, "+")) + "-" + way
			if strings.HasSuffix(step, "+") {
				id += "-end"
			}
			t.Run(id, func(t *testing.T) {
				m.t = t
				s := foreignScript{Sandbox: true, Version: 3}
				if way == "die" {
					s.Die = step
				} else {
					s.Hang = step
				}
				began := time.Now()
				got := d.breakBox(id, shim, s)
				if !strings.HasPrefix(got, strings.SplitAfter(want, ": ")[0]) && way == "hang" && want != "any" || want == "" && got != "" && way == "hang" {
					t.Errorf("%q, want %q", got, want)
				}
				if act := strings.SplitN(want, ": ", 2); len(act) == 2 && way == "hang" && !strings.Contains(got, act[1]) {
					t.Errorf("%q, want %q", got, act[1])
				}
				d.boxGone(id)
				if took := time.Since(began); took > patience {
					t.Errorf("took %s", took)
				}
			})
		}
	}
	m.t = t
}

// breakBox leads a sandbox through its life, until a step fails, and sees to it
// that it goes. It gives the step and its error.
func (d *daemon) breakBox(id, shim string, s foreignScript) string {
	ctx := d.m.t.Context()
	if err := d.createForeignBox(id, shim, s); err != nil {
		return "create: " + err.Error()
	}
	if _, err := d.StartSandbox(ctx, testNS, &sandbox.ControllerStartRequest{SandboxId: id}); err != nil {
		return "start: " + err.Error()
	}
	failed := ""
	note := func(step string, err error) {
		if err != nil && failed == "" {
			failed = step + ": " + err.Error()
		}
	}
	_, err := d.SandboxStatus(ctx, testNS, &sandbox.ControllerStatusRequest{SandboxId: id})
	note("status", err)
	note("stop", d.StopSandbox(ctx, testNS, &sandbox.ControllerStopRequest{SandboxId: id}))
	note("shutdown", d.ShutdownSandbox(ctx, testNS, &sandbox.ControllerShutdownRequest{SandboxId: id}))
	d.m.eventually("the sandbox to go", func() error {
		d.mu.Lock()
		b := d.boxes[nameOf(id)]
		d.mu.Unlock()
		if b == nil {
			return nil
		}
		if pid := b.view().shimPID; pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL) // what the watchdog advises
		}
		return d.ShutdownSandbox(ctx, testNS, &sandbox.ControllerShutdownRequest{SandboxId: id})
	})
	return failed
}

// TestForeignSandboxShimKilled kills the shim of a sandbox, under the daemon and
// while there is none: its containers run on, with their true status in the end.
func TestForeignSandboxShimKilled(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	for box, away := range map[string]bool{"p": false, "q": true} {
		address := d.makeForeignBox(box, shim, foreignScript{Version: 3})
		ready := filepath.Join(m.dir, "ready-"+box)
		if err := d.join("a", shim, box, address, "sh", "-c", "trap 'exit 9' TERM; : >"+ready+"; while :; do sleep 0.05; done"); err != nil {
			t.Fatal(err)
		}
		m.eventually("its trap", func() error { _, err := os.Stat(ready); return err })
		pid := d.boxShim(box)
		if away {
			d.stop()
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if away {
			d = m.start()
		}
		d.verdict("a", "shim-lost")
		m.eventually("the sandbox to have ended", func() error {
			if got := d.sandboxState(box); got != "SANDBOX_NOTREADY" {
				return errors.New(got)
			}
			return nil
		})
		if err := d.join("b", shim, box, address, "true"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("joined a dead one: %v", err)
		}
		m.eventually("SIGTERM to end it", func() error {
			_ = d.kill("a", int(unix.SIGTERM)) // the first may come before the trap
			if got := d.state("a"); !strings.Contains(got, "STOPPED") {
				return errors.New(got)
			}
			return nil
		})
		d.end("a", 9)
		m.goneForeign("a")
		d.shutBox(box)
	}
}

// TestForeignSandboxShutFirst shuts a sandbox down before its container is
// deleted: that goes on, and can be deleted.
func TestForeignSandboxShutFirst(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	address := d.makeForeignBox("p", shim, foreignScript{Version: 3})
	if err := d.join("a", shim, "p", address); err != nil {
		t.Fatal(err)
	}
	pid := m.fakePID(t, "a")
	if err := d.ShutdownSandbox(t.Context(), testNS, &sandbox.ControllerShutdownRequest{SandboxId: "p"}); err != nil {
		t.Fatal(err)
	}
	d.sandboxGone("p")
	d.verdict("a", "shim-lost")
	if !sys.Alive(pid, startOf(t, pid)) {
		t.Error("the container was killed")
	}
	if err := d.kill("a", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	d.end("a", 137)
	m.goneForeign("a")
}

// TestForeignSandboxUnserved asks shims for a sandbox that serve none: a fake, and
// Debian's of runc, if it is there.
func TestForeignSandboxUnserved(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	shims := map[string]string{"fake": m.fakeForeign()}
	if path := "/usr/bin/containerd-shim-runc-v2"; executable(path) {
		shims["debian"] = path
	}
	for id, shim := range shims {
		err := d.createForeignBox(id, shim, foreignScript{Version: 3})
		if !errdefs.IsNotImplemented(err) || !strings.Contains(fmt.Sprint(err), "serves no sandboxes") {
			t.Errorf("%s: %v", id, err)
		}
		d.boxGone(id)
	}
}

// TestForeignSandboxCreateFails has a container fail in a sandbox: the others and
// the sandbox do not notice.
func TestForeignSandboxCreateFails(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	address := d.makeForeignBox("p", shim, foreignScript{Version: 3})
	if err := d.join("a", shim, "p", address); err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"p", ""} {
		c := foreignContainer("b", shim, foreignScript{Mode: "fail"})
		c.Sandbox = way
		_, err := d.Create(t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: "b", TaskApiAddress: address})
		if err == nil || !strings.Contains(err.Error(), "no such thing") {
			t.Errorf("%v", err)
		}
		m.goneForeign("b")
	}
	if got := d.state("a"); !strings.HasPrefix(got, "RUNNING") {
		t.Error(got)
	}
	if err := d.kill("a", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	d.end("a", 137)
	if got := d.sandboxState("p"); got != "SANDBOX_READY" {
		t.Error(got)
	}
	d.shutBox("p")
}
