package runtime

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/sandbox/v1"
)

// server finds the process of a fake shim by the id that it was started with.
func (m *machine) server(id string) int {
	m.t.Helper()
	for _, pid := range m.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if text := string(line); strings.Contains(text, "\x00-id\x00"+id+"\x00") && strings.HasSuffix(text, "\x00serve\x00") {
			return pid
		}
	}
	m.t.Fatalf("no shim of %s", id)
	return 0
}

// TestWatchdogForeign kills the shim of another project, hangs two of which nobody
// asks anything, one of them without a pid, and has one keep an exit to itself: each
// is told, with what can be done, and nothing is once that was done.
func TestWatchdogForeign(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	shim := m.fakeForeign()
	d := m.start()
	for id, s := range map[string]foreignScript{
		"killed": {Version: 3}, "hangs": {Version: 3}, "no-pid": {Pids: "none"}, "mute": {Mode: "mute", Hang: "Wait"},
	} {
		if err := d.createFake(id, shim, s); err != nil {
			t.Fatal(err)
		}
		d.startTask(id)
	}
	d.clean()

	if err := unix.Kill(d.shimPID("killed"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if f := d.finding("task", "killed", false); !strings.Contains(f.Text, "runs on without its shim") {
		t.Error(f)
	}
	for id, want := range map[string]string{"hangs": fmt.Sprintf("kill -9 %d", d.shimPID("hangs")), "no-pid": "has told no pid"} {
		pid := m.server(id)
		m.freeze(pid)
		if f := d.finding("shim", id, false); !strings.Contains(f.Text, want) {
			t.Errorf("%s: %+v, want %q", id, f, want)
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(m.fakePID(t, "mute"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if f := d.finding("exit", "mute", false); !strings.Contains(f.Text, fmt.Sprintf("kill -9 %d", d.shimPID("mute"))) {
		t.Error(f)
	}
	if err := unix.Kill(d.shimPID("mute"), unix.SIGKILL); err != nil { // as it advises
		t.Fatal(err)
	}
	for _, id := range []string{"killed", "hangs", "no-pid", "mute"} {
		if id != "mute" {
			if err := d.kill(id, int(unix.SIGKILL)); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if _, err := d.wait(id, ""); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := d.delete(id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		m.goneForeign(id)
	}
	d.clean()
}

// TestWatchdogSandbox hangs and kills the shim of a sandbox, ours and another's.
func TestWatchdogSandbox(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	shim := m.fakeForeign()
	d := m.start()
	d.makeForeignBox("p", shim, foreignScript{Version: 3})
	d.clean()
	pid := d.boxShim("p")
	m.freeze(pid)
	if f := d.finding("sandbox", "p", false); !strings.Contains(f.Text, fmt.Sprintf("kill -9 %d", pid)) {
		t.Error(f)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.clean()
	if err := d.StopSandbox(t.Context(), testNS, &sandbox.ControllerStopRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	d.clean() // it was stopped, which is nothing wrong
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if f := d.finding("sandbox", "p", false); !strings.Contains(f.Text, "its shim has died") {
		t.Error(f)
	}
	d.shutBox("p")
	d.makeForeignBox("q", shim, foreignScript{Version: 3})
	if err := unix.Kill(d.boxShim("q"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if f := d.finding("sandbox", "q", false); !strings.Contains(f.Text, "has ended: its shim has died") {
		t.Error(f)
	}
	d.shutBox("q")
	d.clean()
}
