package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/runtime/record"
)

// count is how far a counter of TestRealCheckpoint is, by the file it writes.
func (m *machine) count(id string) int {
	data, err := os.ReadFile(filepath.Join(m.dir, "layers", id, "fs", "count"))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return n
}

func (m *machine) counts(id string, beyond int) {
	m.t.Helper()
	m.eventually("count of "+id, func() error {
		if n := m.count(id); n <= beyond {
			return fmt.Errorf("%d, want more than %d", n, beyond)
		}
		return nil
	})
}

// TestRealCheckpoint has criu write a process down that counts in its memory, and
// lets it go on in another container: with a daemon that ends between create and
// start and after it, and with a shim that is killed.
func TestRealCheckpoint(t *testing.T) {
	if err := exec.Command("criu", "check").Run(); err != nil {
		t.Skipf("criu check: %v: checkpoints can't be made here", err)
	}
	if strings.Contains(os.Getenv("BERTH_OCI_BINARY"), "crun") {
		t.Skip("Debian's crun is built without criu")
	}
	m := newRealMachine(t)
	m.deadlines.Checkpoint = patience
	d := m.start()
	again := func() {
		d.stop()
		d = m.start()
	}
	const script = "trap 'exit 7' TERM; n=0; while :; do n=$((n+1)); echo $n >/count; sleep 0.02; done"
	var store shelf
	d.runReal("a", "sh", "-c", script)
	m.counts("a", 50)

	dumped, err := d.checkpoint("a", &store, nil)
	if err != nil {
		t.Fatal(err)
	}
	least := m.count("a") // the dump is of an earlier count
	m.counts("a", least)  // and it runs on
	if _, err := d.checkpoint("a", &store, &runc.CheckpointOptions{Exit: true}); err != nil {
		t.Fatal(err)
	}
	if status, err := d.wait("a", ""); err != nil || status != 128+uint32(unix.SIGKILL) {
		exit, _ := os.ReadFile(filepath.Join(d.find(testNS, "a").dir, record.ExitFile))
		t.Fatalf("after a dump that ends it: %d, %v; %s", status, err, exit)
	}
	d.end("a", 128+uint32(unix.SIGKILL))

	request := &tasks.CreateTaskRequest{ContainerId: "b", Rootfs: m.rootfs("b"), Checkpoint: dumped.Descriptors[0]}
	if _, err := d.CreateFrom(t.Context(), testNS, m.realContainer("b", "sh", "-c", script), request, &store); err != nil {
		t.Fatal(err)
	}
	again()
	d.verdict("b", "connected")
	if n := m.count("b"); n != 0 {
		t.Fatalf("counted to %d before its start", n)
	}
	d.runStarted("b")
	m.eventually("count of b", func() error {
		n := m.count("b")
		if n > 0 && n < 20 {
			t.Fatalf("it began anew: %d", n)
		}
		if n == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	again()
	d.verdict("b", "connected")
	pid := int(d.Report()[0].PID)
	m.counts("b", m.count("b"))

	m.killShim(d.find(testNS, "b").dir)
	d.verdict("b", "shim-lost")
	m.counts("b", m.count("b"))
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.end("b", 7)
	// The dump is packed after the end that it brings: the exit may come first.
	m.eventually("the events", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		const dumped = "/tasks/checkpointed a"
		others := slices.DeleteFunc(slices.Clone(m.events), func(e string) bool { return e == dumped })
		twice := len(m.events)-len(others) == 2
		// An event whose answer a daemon's end has cut off comes again; the journal, which
		// is not here, takes it once.
		others = slices.Compact(others)
		want := []string{"/tasks/create a", "/tasks/start a", "/tasks/exit a 137", "/tasks/delete a 137",
			"/tasks/create b", "/tasks/start b", "/tasks/exit b 7", "/tasks/delete b 7"}
		if !slices.Equal(others, want) || !twice {
			return fmt.Errorf("%q, want %q and twice %q", m.events, want, dumped)
		}
		return nil
	})
	if left := m.images(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
