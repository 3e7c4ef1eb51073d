package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/tasks/v1"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// waitFor is an init that ends with a status once a file is there.
func waitFor(file string, status int) script {
	return script{Args: []string{"sh", "-c", fmt.Sprintf("while ! [ -e %s ]; do sleep 0.01; done; exit %d", file, status)}}
}

// touch makes a file and waits until the process has ended.
func (m *machine) touch(file string, pid int) {
	m.t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.ended(pid)
}

func (m *machine) ended(pid int) {
	m.t.Helper()
	m.eventually("process ended", func() error {
		if s, err := sys.ReadStat(pid); err == nil && !s.Dead() {
			return fmt.Errorf("process %d lives", pid)
		}
		return nil
	})
}

// TestExitWhileAway ends a container while there is no daemon: the next one has
// the true status at once, and the exit is published once, by the shim.
func TestExitWhileAway(t *testing.T) {
	m := newMachine(t)
	gate := filepath.Join(m.dir, "gate")
	d := m.start()
	pid := d.run("a", waitFor(gate, 7))
	m.expect("/tasks/create a", "/tasks/start a")
	d.stop()
	m.touch(gate, pid)
	exit := filepath.Join(m.dir, bundlesDir, testNS, "a", record.ExitFile)
	m.eventually("exit recorded", func() error { _, err := os.Stat(exit); return err })
	d = m.start()
	if got := d.state("a"); got != "STOPPED 7" {
		t.Errorf("before adoption: %s", got)
	}
	if status, err := d.wait("a", ""); err != nil || status != 7 {
		t.Error(status, err)
	}
	d.verdict("a", "connected")
	m.expect("/tasks/exit a 7")
	d.end("a", 7)
	m.expect("/tasks/delete a 7")
}

// TestExitNeverForwarded has a shim that lives but does not deliver the exit
// event: the daemon does after a while, and once, over restarts.
func TestExitNeverForwarded(t *testing.T) {
	m := newMachine(t)
	gate := filepath.Join(m.dir, "gate")
	s := waitFor(gate, 7)
	s.Mode = "mute"
	d := m.start()
	pid := d.run("a", s)
	m.expect("/tasks/create a", "/tasks/start a")
	d.stop()
	m.touch(gate, pid)
	for range 3 {
		d = m.start()
		d.verdict("a", "connected")
		m.eventually("published", func() error {
			if k := d.find(testNS, "a"); !k.published("", pid) {
				return errors.New("no")
			}
			return nil
		})
		d.stop()
	}
	d = m.start()
	d.verdict("a", "connected")
	d.end("a", 7)
	m.expect("/tasks/exit a 7", "/tasks/delete a 7")
}

// TestForwardRefused has the journal refuse events for a while: the shim sends
// again, and each event is taken once.
func TestForwardRefused(t *testing.T) {
	m := newMachine(t)
	m.refuse = true
	d := m.start()
	d.run("a", script{Args: []string{"sh", "-c", "exit 2"}})
	if status, err := d.wait("a", ""); err != nil || status != 2 {
		t.Fatal(status, err)
	}
	m.mu.Lock()
	m.refuse = false
	m.mu.Unlock()
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 2")
	d.end("a", 2)
	m.expect("/tasks/delete a 2")
}

// TestShimDying looks at a bundle whose shim is about to end: nobody listens on
// its socket any more, but the process is not dead yet. That must not count as a
// shim that may still be there.
func TestShimDying(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{Args: []string{"sleep", "1000"}})
	k := d.find(testNS, "a")
	own := d.shimPID("a")

	// A process that ends a moment after it was looked at stands for the shim.
	dying := exec.Command("sleep", "0.1")
	if err := dying.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dying.Wait() }()
	stat, err := sys.ReadStat(dying.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	r := record.Shim{Version: record.Version, PID: dying.Process.Pid, StartTime: stat.StartTime, Socket: k.socket}
	if err := record.Write("test", k.dir, record.ShimFile, r); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(k.socket); err != nil {
		t.Fatal(err)
	}
	f, _ := d.gather(t.Context(), k)
	if v, reason := judge(f); v != verdictLost {
		t.Errorf("%s (%s): %v", v, reason, f)
	}

	if err := unix.Kill(own, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "shim-lost")
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
}

// TestShimKilled kills the shim: the container runs on, can be killed, and its
// true status is known, waited for before and after, over a restart.
func TestShimKilled(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %t", restart), func(t *testing.T) {
			m := newMachine(t)
			d := m.start()
			ready := filepath.Join(m.dir, "ready")
			pid := d.run("a", script{Args: []string{"sh", "-c", "trap 'exit 9' TERM; : >" + ready + "; while :; do sleep 0.01; done"}})
			m.expect("/tasks/create a", "/tasks/start a")
			m.eventually("ready", func() error { _, err := os.Stat(ready); return err })
			if restart {
				d.stop()
			}
			waited := make(chan error, 1)
			wait := func() {
				status, err := d.wait("a", "")
				if err == nil && status != 9 {
					err = fmt.Errorf("status %d", status)
				}
				waited <- err
			}
			if !restart {
				go wait()
			}
			m.killShim(filepath.Join(m.dir, bundlesDir, testNS, "a"))
			if restart {
				d = m.start()
				go wait()
			}
			if s := d.verdict("a", "shim-lost"); s.PID != uint32(pid) || s.Reason != "the shim has died" {
				t.Errorf("%+v", s)
			}
			if got := d.state("a"); got != "RUNNING 0" {
				t.Error(got)
			}
			if got := d.listed(); got != "a RUNNING" {
				t.Error(got)
			}
			_, err := d.ListPids(t.Context(), testNS, &tasks.ListPidsRequest{ContainerId: "a"})
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the shim has died") {
				t.Errorf("pids: %v", err)
			}
			if _, err := d.delete("a"); err == nil || !strings.Contains(err.Error(), "cannot delete a running process") {
				t.Errorf("delete: %v", err)
			}
			if err := d.kill("a", int(unix.SIGTERM)); err != nil {
				t.Fatal(err)
			}
			if err := <-waited; err != nil {
				t.Fatal(err)
			}
			d.verdict("a", "stopped")
			m.expect("/tasks/exit a 9", "/tasks/delete a 9")
			if err := d.kill("a", 9); !errdefs.IsNotFound(err) {
				t.Errorf("kill stopped: %v", err)
			}
			err = d.Pause(t.Context(), testNS, &tasks.PauseTaskRequest{ContainerId: "a"})
			if err == nil || errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
				t.Errorf("pause stopped: %v", err)
			}
			d.stop()
			d = m.start()
			if got := d.state("a"); got != "STOPPED 9" {
				t.Error(got)
			}
			d.end("a", 9)
			m.expect()
		})
	}
}

// killShim kills the shim of a bundle and waits for its end.
func (m *machine) killShim(dir string) {
	m.t.Helper()
	var s record.Shim
	if err := record.Read(dir, record.ShimFile, &s); err != nil {
		m.t.Fatal(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	m.ended(s.PID)
}

// TestBothKilled kills shim and container at once. With the daemon there, it
// holds a handle on the container, which tells the status even so where the
// kernel can; otherwise the record says that it can't. It is not invented.
func TestBothKilled(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	m.expect("/tasks/create a", "/tasks/start a")
	shim := d.shimPID("a")
	m.freeze(shim) // so that it can't record the exit
	_ = unix.Kill(pid, unix.SIGTERM)
	_ = unix.Kill(shim, unix.SIGKILL)
	d.verdict("a", "stopped")
	var exit record.Exit
	if err := record.Read(d.find(testNS, "a").dir, record.ExitFile, &exit); err != nil {
		t.Fatal(err)
	}
	switch {
	case exit.Status == 128+15 && strings.HasPrefix(exit.Reason, reasonDied):
	case exit.Status == statusUnobserved && strings.HasPrefix(exit.Reason, reasonUnobserved):
		t.Log("this kernel does not tell")
	default:
		t.Errorf("%+v", exit)
	}
	d.end("a", exit.Status)
	m.expect(fmt.Sprintf("/tasks/exit a %d", exit.Status), fmt.Sprintf("/tasks/delete a %d", exit.Status))
}

// TestBothKilledWhileAway does so without a daemon: now nobody can know.
func TestBothKilledWhileAway(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	m.expect("/tasks/create a", "/tasks/start a")
	shim := d.shimPID("a")
	d.stop()
	m.freeze(shim)
	_ = unix.Kill(pid, unix.SIGTERM)
	_ = unix.Kill(shim, unix.SIGKILL)
	m.ended(pid)
	m.eventually("reaped", func() error {
		// As pid 1 would: orphans come to the test where it is a subreaper.
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if _, err := sys.ReadStat(pid); err == nil {
			return errors.New("zombie")
		}
		return nil
	})
	d = m.start()
	d.end("a", statusUnobserved)
	m.expect("/tasks/exit a 255", "/tasks/delete a 255")
}

// TestCreateAgainAfterShimDeath makes a task in the place of one that everybody
// was told is deleted.
func TestCreateAgainAfterShimDeath(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	m.expect("/tasks/create a", "/tasks/start a")
	m.killShim(d.find(testNS, "a").dir)
	d.verdict("a", "shim-lost")
	if err := d.create("a", script{}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("create over a living task: %v", err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	d.verdict("a", "stopped")
	d.run("a", script{Args: []string{"true"}})
	d.end("a", 0)
	m.expect("/tasks/exit a 137", "/tasks/delete a 137",
		"/tasks/create a", "/tasks/start a", "/tasks/exit a 0", "/tasks/delete a 0")
}

// TestOrphanExec has execs outlive the shim: one ended before, one ends
// afterwards, one was never started.
func TestOrphanExec(t *testing.T) {
	m := newMachine(t)
	gate := filepath.Join(m.dir, "gate")
	d := m.start()
	d.run("a", script{})
	for id, args := range map[string]string{"early": `"sh","-c","exit 4"`, "late": `"sh","-c","while ! [ -e ` + gate + ` ]; do sleep 0.01; done; exit 5"`} {
		err := d.Exec(t.Context(), testNS, &tasks.ExecProcessRequest{
			ContainerId: "a", ExecId: id, Spec: &anypb.Any{Value: []byte(`{"Args":[` + args + `]}`)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a", ExecId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := d.wait("a", "early"); err != nil || status != 4 {
		t.Fatal(status, err)
	}
	m.eventually("events", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.events) != 7 {
			return fmt.Errorf("%q", m.events)
		}
		m.events = nil
		return nil
	})
	m.killShim(d.find(testNS, "a").dir)
	d.verdict("a", "shim-lost")
	waited := make(chan uint32, 1)
	go func() {
		status, err := d.wait("a", "late")
		if err != nil {
			t.Error(err)
		}
		waited <- status
	}()
	if status, err := d.wait("a", "early"); err != nil || status != 4 {
		t.Error(status, err)
	}
	if _, err := d.wait("a", "never"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status := <-waited; status != 5 {
		t.Error(status)
	}
	m.expect("/tasks/exit late 5")
	r, err := d.DeleteProcess(t.Context(), testNS, &tasks.DeleteProcessRequest{ContainerId: "a", ExecId: "late"})
	if err != nil || r.ExitStatus != 5 {
		t.Error(r, err)
	}
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
	m.expect("/tasks/exit a 137", "/tasks/delete a 137")
}

// TestTakeUndone reads what cleaning up after a create has left: no task that has
// ended is shown, as the create is about to be undone.
func TestTakeUndone(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	exit := &record.Exit{Version: record.Version, PID: 12, Status: 137}
	undone := d.newTask(testNS, "a", adopting)
	dir := t.TempDir()
	if err := record.Write("test", dir, record.ExitFile, exit); err != nil {
		t.Fatal(err)
	}
	undone.take(readRecords(dir))
	if undone.init.over() || undone.status != apitask.Status_UNKNOWN {
		t.Errorf("an exit without a start: over %t, %s", undone.init.over(), undone.status)
	}
	ended := d.newTask(testNS, "b", adopting)
	ended.take(records{exit: exit, started: &record.Started{PID: 12}})
	if !ended.init.over() || ended.status != apitask.Status_STOPPED {
		t.Errorf("an exit with a start: over %t, %s", ended.init.over(), ended.status)
	}
}
