package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/runtime/record"
)

// TestIntent leaves bundles in the states of a create that was cut short: they
// are undone, or come to their outcome.
func TestIntent(t *testing.T) {
	m := newMachine(t)
	table := m.open()
	intent := record.Intent{Version: record.Version, Namespace: testNS, ID: "a", BootID: m.bootID}
	if err := table.bundles.make(intent, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	// A stale socket, on which nobody listens.
	f, err := listen(socketPath(m.dir, testNS, "a"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	// One that was being made, one that was being removed.
	for _, leftover := range []string{newPrefix + "b-1", ".c" + goneSuffix + "1"} {
		if err := os.MkdirAll(filepath.Join(m.dir, bundlesDir, testNS, leftover, "rootfs", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	d := m.start()
	m.eventually("undone", func() error {
		if r := d.Report(); len(r) != 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	m.eventually("swept", func() error {
		left, _ := filepath.Glob(filepath.Join(m.dir, bundlesDir, testNS, ".*-*"))
		if len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	m.expect()
}

// TestIntentWithShim has the daemon end right after the shim was started: the
// next one sends it away.
func TestIntentWithShim(t *testing.T) {
	m := newMachine(t)
	table := m.open()
	intent := record.Intent{Version: record.Version, Namespace: testNS, ID: "a", BootID: m.bootID}
	if err := table.bundles.make(intent, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	k := table.newTask(testNS, "a", creating)
	shim, c, err := table.startShim(t.Context(), k, &plan{})
	if err != nil {
		t.Fatal(err)
	}
	m.shims = append(m.shims, shim.proc.PID())
	c.close()
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	d := m.start()
	m.eventually("undone", func() error {
		if r := d.Report(); len(r) != 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	m.expect()
}

// TestStray leaves a shim and a socket of which the bundle is gone: the shim is
// sent away, and its file goes at the start after.
func TestStray(t *testing.T) {
	m := newMachine(t)
	table := m.open()
	intent := record.Intent{Version: record.Version, Namespace: testNS, ID: "a", BootID: m.bootID}
	if err := table.bundles.make(intent, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	k := table.newTask(testNS, "a", creating)
	shim, c, err := table.startShim(t.Context(), k, &plan{})
	if err != nil {
		t.Fatal(err)
	}
	m.shims = append(m.shims, shim.proc.PID())
	c.close()
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(k.dir); err != nil {
		t.Fatal(err)
	}
	f, err := listen(socketPath(m.dir, testNS, "b"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	d := m.start()
	m.ended(shim.proc.PID())
	d.stop()
	m.start()
	m.noLeftovers()
}

// TestQuarantine spoils a record: the task is kept and reported, its calls say
// why they fail, and it is only deleted once nothing of it runs.
func TestQuarantine(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	dir := d.find(testNS, "a").dir
	d.stop()
	if err := os.WriteFile(filepath.Join(dir, record.IntentFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = m.start()
	if s := d.verdict("a", "quarantined"); !strings.Contains(s.Reason, record.IntentFile) {
		t.Errorf("%+v", s)
	}
	if got := d.listed(); got != "a RUNNING" {
		t.Error(got)
	}
	if err := d.kill("a", 9); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), record.IntentFile) {
		t.Errorf("kill: %v", err)
	}
	if _, err := d.delete("a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("delete with a shim: %v", err)
	}
	m.killShim(dir)
	if _, err := d.delete("a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), fmt.Sprint("its init runs as process ", pid)) {
		t.Errorf("delete with init: %v", err)
	}
	// Without a record, what it stands in gives it away.
	if err := os.Remove(filepath.Join(dir, record.StartedFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.delete("a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), fmt.Sprintf("process %d has the bundle", pid)) {
		t.Errorf("delete with an unrecorded init: %v", err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	m.ended(pid)
	m.eventually("deleted", func() error { _, err := d.delete("a"); return err })
}

// TestReboot changes the boot id: every task is gone, and so are its files.
func TestReboot(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	pid := d.run("a", script{})
	dir := d.find(testNS, "a").dir
	d.stop()
	m.killShim(dir)
	_ = unix.Kill(pid, unix.SIGKILL)
	m.ended(pid)
	if err := os.WriteFile(filepath.Join(dir, record.ExitFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.bootID = "boot-2"
	d = m.start()
	if r := d.Report(); len(r) != 0 {
		t.Fatal(r)
	}
	data, err := os.ReadFile(filepath.Join(m.dir, bootIDFile))
	if err != nil || string(data) != "boot-2\n" {
		t.Fatal(string(data), err)
	}
	d.run("a", script{Args: []string{"true"}})
	d.end("a", 0)
}

// TestMany restarts over many tasks: all are listed at once with their status,
// and all are adopted.
func TestMany(t *testing.T) {
	const n = 50
	m := newMachine(t)
	d := m.start()
	pids := map[string]int{}
	for i := range n {
		id := fmt.Sprintf("c%02d", i)
		pids[id] = d.run(id, script{})
	}
	d.stop()
	for i := range n / 2 {
		_ = unix.Kill(pids[fmt.Sprintf("c%02d", i)], unix.SIGTERM)
	}
	for i := range n / 2 {
		path := filepath.Join(m.dir, bundlesDir, testNS, fmt.Sprintf("c%02d", i), record.ExitFile)
		m.eventually("exit recorded", func() error { _, err := os.Stat(path); return err })
	}
	begin := time.Now()
	d = m.start()
	opened := time.Since(begin)
	list := d.listed()
	if got := strings.Count(list, "STOPPED"); got != n/2 {
		t.Errorf("%d stopped of %d: %s", got, n, list)
	}
	if got := strings.Count(list, "RUNNING"); got != n/2 {
		t.Errorf("%d running of %d: %s", got, n, list)
	}
	for id := range pids {
		d.verdict(id, "connected")
	}
	t.Logf("%d tasks: open %s, adopted after %s", n, opened, time.Since(begin))
	for i := range n {
		id := fmt.Sprintf("c%02d", i)
		if i >= n/2 {
			if err := d.kill(id, 15); err != nil {
				t.Fatal(err)
			}
		}
		d.end(id, 143)
	}
}
