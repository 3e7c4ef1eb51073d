package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// realGroup makes a group in the hierarchy that can freeze, with a group below
// it, and processes in both.
func realGroup(t *testing.T) (Group, []int) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("control groups need root")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	at, ok := parseMounts(mounts)["freezer"]
	unified := !ok
	if unified {
		if at, ok = parseMounts(mounts)[""]; !ok {
			t.Skip("no hierarchy that can freeze")
		}
	}
	dir := filepath.Join(at.dir, fmt.Sprintf("berth-kill-%d", os.Getpid()))
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	var pids []int
	for _, group := range []string{dir, filepath.Join(dir, "below")} {
		if err := os.MkdirAll(group, 0o755); err != nil {
			t.Skip(err)
		}
		// One that makes others all the time.
		cmd := exec.Command("sh", "-c", "read go; while :; do sleep 0.01 & done")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Wait() })
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			_ = cmd.Process.Kill()
			t.Skip(err)
		}
		if _, err := in.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	if unified {
		return Group{Unified: dir}, pids
	}
	return Group{Controllers: map[string]string{"freezer": dir}}, pids
}

// TestKill ends groups of processes that fork all the time, frozen and not.
func TestKill(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run("frozen "+strconv.FormatBool(frozen), func(t *testing.T) {
			g, pids := realGroup(t)
			if frozen {
				if err := g.freeze(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := g.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			if living, err := g.living(); err != nil || len(living) > 0 {
				t.Errorf("living: %v, %v", living, err)
			}
			for _, pid := range pids {
				if stat, err := sys.ReadStat(pid); err == nil && !stat.Dead() {
					t.Errorf("%d lives: %c", pid, stat.State)
				}
			}
		})
	}
}

// TestSignal reaches every process of a group and of those below.
func TestSignal(t *testing.T) {
	g, pids := realGroup(t)
	n, err := g.Signal(unix.SIGSTOP)
	if err != nil || n < len(pids) {
		t.Errorf("%d, %v", n, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestKillGone is about groups that are not there, and one that can't be killed.
func TestKillGone(t *testing.T) {
	gone := Group{Controllers: map[string]string{"freezer": "/nowhere/at/all"}}
	if err := gone.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := gone.Signal(unix.SIGTERM); n != 0 || err != nil {
		t.Error(n, err)
	}
	// The files of a made-up group don't do anything.
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	dir := t.TempDir()
	for file, data := range map[string]string{"cgroup.kill": "", "cgroup.freeze": "0", "cgroup.procs": fmt.Sprintln(cmd.Process.Pid)} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := (Group{Unified: dir}).Kill(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "cgroup.kill")); err != nil || !bytes.Equal(data, []byte("1")) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestDirectories(t *testing.T) {
	for _, name := range []string{"", "/", "system.slice:berth:a", "/no/such/group"} {
		if dirs, err := Directories(name); err != nil || len(dirs) > 0 {
			t.Errorf("%q: %v, %v", name, dirs, err)
		}
	}
}
