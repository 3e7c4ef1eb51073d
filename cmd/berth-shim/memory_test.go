package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	task "github.com/berthd/berth/api/runtime/task/v3"
)

// Budgets of one shim, idle with one container. They leave room for the noise of
// a busy machine; what is measured is printed with -v, and the figures that
// count are the benchmark's.
const (
	maxAnonymous = 2000 // KiB
	maxResident  = 6347 // KiB, which are 6.5 MB
	maxBinary    = 7 << 20
)

// memory reads a number of /proc/PID/smaps_rollup, in KiB.
func (f *fixture) memory(key string) int {
	f.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", f.cmd.Process.Pid))
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == key+":" {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				f.t.Fatal(err)
			}
			return n
		}
	}
	f.t.Fatalf("smaps_rollup has no %s", key)
	return 0
}

// settled waits until memory no longer falls: the shim gives back what it can
// some time after the last call.
func (f *fixture) settled() int {
	f.t.Helper()
	least, since := f.memory("Anonymous"), time.Now()
	for time.Since(since) < 4*time.Second {
		time.Sleep(100 * time.Millisecond)
		if now := f.memory("Anonymous"); now < least {
			least, since = now, time.Now()
		}
	}
	return f.memory("Anonymous")
}

// TestMemory measures a shim that has nothing to do, and one that has done much.
func TestMemory(t *testing.T) {
	if raceFlag != "" || testing.Short() {
		t.Skip("measures the real program, for some seconds")
	}
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	c := newClientIO(t)
	f := container(t, "sleep", "1000")
	empty := f.settled()
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path, Stderr: c.stderr.path})
	idle, resident := f.settled(), f.memory("Rss")
	for i := range 100 {
		id := fmt.Sprintf("e%d", i)
		f.exec(id, &task.ExecProcessRequest{Stdout: c.stdout.path}, "echo", "hello")
		f.startTask(id)
		f.wait(id, 0)
		f.delete(id)
	}
	after := f.settled()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", f.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("binary %d KiB; anonymous memory: %d KiB without a container, %d KiB idle with one, %d KiB after 100 execs; resident %d KiB idle with one, %d KiB after 100 execs; %d threads",
		info.Size()>>10, empty, idle, after, resident, f.memory("Rss"), len(tasks))
	if info.Size() > maxBinary {
		t.Errorf("binary has %d bytes, more than %d", info.Size(), maxBinary)
	}
	if idle > maxAnonymous {
		t.Errorf("idle shim has %d KiB of anonymous memory, more than %d", idle, maxAnonymous)
	}
	if resident > maxResident {
		t.Errorf("idle shim has %d KiB of resident memory, more than %d", resident, maxResident)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}
