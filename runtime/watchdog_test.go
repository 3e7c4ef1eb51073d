package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// finding waits for one that is about the object, open or repaired.
func (d *daemon) finding(kind, object string, repaired bool) Finding {
	d.m.t.Helper()
	var found Finding
	d.m.eventually("finding of "+kind+" "+object, func() error {
		all := d.Inspect(d.m.t.Context())
		for _, f := range all {
			if f.Kind == kind && f.Object == object && (f.Repaired != "") == repaired {
				found = f
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	})
	return found
}

// clean waits until nothing is wrong.
func (d *daemon) clean() {
	d.m.t.Helper()
	d.m.eventually("nothing wrong", func() error {
		for _, f := range d.Inspect(d.m.t.Context()) {
			if f.Repaired == "" {
				return fmt.Errorf("%+v", f)
			}
		}
		return nil
	})
}

// watchful has the watchdog look often, and act on what it has seen for a while.
func watchful(m *machine) { m.watch = 30 * time.Millisecond }

// TestWatchdogLeftovers makes what tasks may leave, and what only looks like it.
func TestWatchdogLeftovers(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	d := m.start()
	pid := d.run("a", script{})
	d.clean()

	gone := filepath.Join(m.dir, bundlesDir, testNS, ".b"+goneSuffix+"1")
	if err := os.MkdirAll(filepath.Join(gone, record.RootfsDir, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.finding("bundle", gone, true)
	if _, err := os.Lstat(gone); !os.IsNotExist(err) {
		t.Error(err)
	}

	unknown := filepath.Join(m.dir, bundlesDir, testNS, "c")
	if err := os.MkdirAll(unknown, 0o700); err != nil {
		t.Fatal(err)
	}
	if f := d.finding("bundle", unknown, false); !strings.Contains(f.Text, "no task has") {
		t.Error(f)
	}
	if err := os.Remove(unknown); err != nil {
		t.Fatal(err)
	}

	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	start := strings.Fields(string(stat)[strings.LastIndex(string(stat), ")"):])[20]
	for id, state := range map[string]string{
		"dead": `{"init_process_pid": 4194303, "init_process_start": 1}`,
		"live": fmt.Sprintf(`{"init_process_pid": %d, "init_process_start": %s}`, pid, start),
	} {
		dir := filepath.Join(m.dir, ociDir, testNS, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.finding("oci-state", filepath.Join(m.dir, ociDir, testNS, "dead"), true)
	live := filepath.Join(m.dir, ociDir, testNS, "live")
	d.finding("oci-state", live, false)
	if err := os.RemoveAll(live); err != nil {
		t.Fatal(err)
	}

	stale := filepath.Join(m.dir, socketsDir, "stale")
	f, err := listen(stale)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	heard := filepath.Join(m.dir, socketsDir, "heard")
	l, err := net.Listen("unix", heard)
	if err != nil {
		t.Fatal(err)
	}
	d.finding("socket", stale, true)
	if _, err := os.Lstat(heard); err != nil {
		t.Error(err)
	}
	l.Close()
	d.clean()
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
}

// TestWatchdogShims hangs a shim, kills another, and takes an exit record away.
func TestWatchdogShims(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	d := m.start()
	d.run("a", script{})
	d.run("b", script{})
	shim := d.shimPID("a")
	m.freeze(shim)
	_ = d.state("a")
	if f := d.finding("shim", "a", false); !strings.Contains(f.Text, fmt.Sprint("kill -9 ", shim)) {
		t.Error(f)
	}
	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.clean()

	m.killShim(d.find(testNS, "b").dir)
	d.verdict("b", "shim-lost")
	d.finding("task", "b", false)
	if err := d.kill("b", 15); err != nil {
		t.Fatal(err)
	}
	d.verdict("b", "stopped")
	path := filepath.Join(d.find(testNS, "b").dir, record.ExitFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	d.finding("record", "b", true)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if _, err := d.delete("b"); err != nil {
		t.Fatal(err)
	}
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
}

// TestWatchdogMissedExit has a shim record an exit and hang before it tells.
func TestWatchdogMissedExit(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	d := m.start()
	pid := d.run("a", script{})
	shim := d.shimPID("a")
	m.freeze(shim)
	if err := d.kill("a", 9); err != nil { // by the daemon itself
		t.Fatal(err)
	}
	m.ended(pid)
	if f := d.finding("exit", "a", false); !strings.Contains(f.Text, "has not recorded how") {
		t.Error(f)
	}
	exit := record.Exit{Version: record.Version, PID: pid, Status: 137, ExitedAt: time.Now()}
	if err := record.Write("test", d.find(testNS, "a").dir, record.ExitFile, exit); err != nil {
		t.Fatal(err)
	}
	d.finding("exit", "a", true)
	if status, err := d.wait("a", ""); err != nil || status != 137 {
		t.Error(status, err)
	}
	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.eventually("delete", func() error { // once the shim has woken and noticed
		_, err := d.delete("a")
		return err
	})
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 137", "/tasks/delete a 137")
}

// TestKillHungShim kills containers whose shims don't answer, and learns how they
// ended once these do: nothing is lost and nothing invented.
func TestKillHungShim(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	shim := d.shimPID("a")
	m.freeze(shim)
	if err := d.kill("a", 15); err == nil || !strings.Contains(err.Error(), "did not send the signal within") {
		t.Errorf("SIGTERM: %v", err)
	}
	start := time.Now()
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*m.deadlines.State {
		t.Errorf("SIGKILL took %s", took)
	}
	m.ended(pid)
	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	status, err := d.wait("a", "")
	if err != nil || status != 137 && status != 143 { // the SIGTERM waits in the shim's socket
		t.Fatal(status, err)
	}
	d.end("a", status)

	// The same by a daemon to which the shim has never answered.
	pid = d.run("b", script{})
	shim = d.shimPID("b")
	m.freeze(shim)
	d.stop()
	d = m.start()
	m.eventually("judged", func() error {
		if s := d.Report()[0]; !strings.Contains(s.Reason, "does not answer") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if err := d.kill("b", 9); err != nil {
		t.Fatal(err)
	}
	m.ended(pid)
	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.end("b", 137)
}

// TestReapRound has orphans come to the test as a subreaper: they are reaped in
// the second round, and what is looked after is not.
func TestReapRound(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	orphan := orphanOf(t)
	before := d.reapRound(nil)
	if _, ok := before[orphan]; !ok {
		t.Fatalf("%d is not among %v", orphan, before)
	}
	d.reapRound(before)
	if err := unix.Kill(orphan, 0); !errors.Is(err, unix.ESRCH) {
		t.Error(err)
	}
}

// orphanOf makes a zombie child that nobody waits for.
func orphanOf(t *testing.T) int {
	t.Helper()
	path, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := syscall.ForkExec(path, []string{"true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := sys.OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestWatchdogBundleUnderWay has a bundle that takes longer to be made than a round:
// it is left alone while its task is there, and removed when nobody has it.
func TestWatchdogBundleUnderWay(t *testing.T) {
	m := newMachine(t)
	watchful(m)
	d := m.start()
	d.run("a-b", script{})
	parent := filepath.Dir(d.find(testNS, "a-b").dir)
	mine, nobodys := filepath.Join(parent, newPrefix+"a-b-123"), filepath.Join(parent, newPrefix+"a-123")
	for _, dir := range []string{mine, nobodys} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d.finding("bundle", nobodys, true)
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	d.finish("a-b")
	d.finding("bundle", mine, true)
}
