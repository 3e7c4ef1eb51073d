package soak

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/harness"
)

// counts is what there is at one moment.
type counts struct {
	processes, zombies, mounts, groups, bundles, sockets int
	goroutines                                           int
	daemon, shim                                         process
}

// process is what one process holds.
type process struct {
	files, threads int
	private        int // anonymous memory of its own, KiB
}

func (c counts) String() string {
	return fmt.Sprintf("processes %d, zombies %d, mounts %d, control groups %d, bundles %d, sockets %d; daemon: %d goroutines, %s; shim: %s",
		c.processes, c.zombies, c.mounts, c.groups, c.bundles, c.sockets, c.goroutines, c.daemon, c.shim)
}

func (p process) String() string {
	return fmt.Sprintf("%d files, %d threads, %d KiB private", p.files, p.threads, p.private)
}

// count counts everything.
func (s *soak) count(long string) counts {
	c := s.countFew(long)
	c.goroutines = s.goroutines()
	return c
}

// countFew is count without what the daemon has to be asked for.
func (s *soak) countFew(long string) counts {
	t := s.t
	var c counts
	running, err := s.daemon.Processes()
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := s.daemon.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	groups, err := harness.Cgroups(s.mark)
	if err != nil {
		t.Fatal(err)
	}
	shim := s.shim(long)
	for _, pid := range []int{s.daemon.PID(), shim} {
		n, err := harness.Zombies(pid)
		if err != nil {
			t.Fatal(err)
		}
		c.zombies += n
	}
	bundles, _ := filepath.Glob(filepath.Join(s.daemon.State, "io.containerd.runtime.v2.task", "soak", "*"))
	hidden, _ := filepath.Glob(filepath.Join(s.daemon.State, "io.containerd.runtime.v2.task", "soak", ".*"))
	sockets, _ := filepath.Glob(filepath.Join(s.daemon.State, "s", "*"))
	c.processes, c.mounts, c.groups = len(running), len(mounts), len(groups)
	c.bundles, c.sockets = len(bundles)+len(hidden), len(sockets)
	c.daemon, c.shim = inspect(s.daemon.PID()), inspect(shim)
	return c
}

// inspect looks at one process.
func inspect(pid int) process {
	var p process
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	p.files, p.threads = len(files), len(threads)
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == "Anonymous:" {
			p.private, _ = strconv.Atoi(fields[1])
		}
	}
	return p
}

// compare waits for what is on its way out, then fails for what has grown.
func (s *soak) compare(what string, before counts, long string) {
	t := s.t
	t.Helper()
	var after counts
	for deadline := time.Now().Add(quiet); ; time.Sleep(look) {
		after = s.countFew(long)
		after.goroutines = before.goroutines
		if grown(before, after) == "" {
			after.goroutines = s.goroutines()
		}
		if grown(before, after) == "" || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("before %s: %s", what, before)
	t.Logf("after  %s: %s", what, after)
	if text := grown(before, after); text != "" {
		t.Errorf("after %s there is more:%s", what, text)
	}
}

// grown names what there is more of than there may be.
func grown(before, after counts) string {
	var text strings.Builder
	for _, c := range []struct {
		what                  string
		before, after, margin int
	}{
		{"processes", before.processes, after.processes, 0},
		{"zombies", before.zombies, after.zombies, 0},
		{"mounts", before.mounts, after.mounts, 0},
		{"control groups", before.groups, after.groups, 0},
		{"bundles", before.bundles, after.bundles, 0},
		{"sockets", before.sockets, after.sockets, 0},
		{"goroutines of the daemon", before.goroutines, after.goroutines, 2}, // one that is just at work
		{"files of the daemon", before.daemon.files, after.daemon.files, 1},
		{"files of the shim", before.shim.files, after.shim.files, 1},
		{"threads of the shim", before.shim.threads, after.shim.threads, 3},
		{"KiB of the daemon", before.daemon.private, after.daemon.private, daemonGrowth},
		{"KiB of the shim", before.shim.private, after.shim.private, shimGrowth},
	} {
		if c.after > c.before+c.margin {
			fmt.Fprintf(&text, " %s %d, before %d;", c.what, c.after, c.before)
		}
	}
	return text.String()
}
