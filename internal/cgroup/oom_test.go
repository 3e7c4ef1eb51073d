package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
)

func TestOOMKills(t *testing.T) {
	dir := tree(t, map[string]string{
		"memory.oom_control":     "oom_kill_disable 1\nunder_oom 1\noom_kill 3\n",
		"memory.events":          "low 1\nhigh 2\nmax 9\noom 5\noom_kill 4\noom_group_kill 1\n",
		"old/memory.oom_control": "oom_kill_disable 0\nunder_oom 1\n", "garbage/memory.events": "\noom_kill\noom_kill x\n",
	})
	for _, c := range []struct {
		name  string
		group Group
		kills uint64
		stuck bool
	}{
		{"version 1", Group{Controllers: map[string]string{"memory": dir}}, 3, true},
		{"version 2", Group{Unified: dir}, 4, false},
		{"before Linux 4.13", Group{Controllers: map[string]string{"memory": filepath.Join(dir, "old")}}, 0, false},
		{"garbage", Group{Unified: filepath.Join(dir, "garbage")}, 0, false},
	} {
		o, err := c.group.OpenOOM()
		if err != nil {
			t.Fatal(err)
		}
		if kills, stuck, err := o.Kills(); err != nil || kills != c.kills || stuck != c.stuck {
			t.Errorf("%s: %d, %v, %v", c.name, kills, stuck, err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if _, _, err := o.Kills(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s, closed: %v", c.name, err)
		}
	}
	for _, g := range []Group{{Controllers: map[string]string{"pids": dir}}, {Unified: filepath.Join(dir, "gone")}} {
		if o, err := g.OpenOOM(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: %v, %v", g, o, err)
		}
	}
}

// memoryGroup makes a group with 16 MiB of memory, in this machine's version.
func memoryGroup(t *testing.T, name string) Group {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounts := parseMounts(data)
	at, v1 := mounts["memory"]
	file := "memory.limit_in_bytes"
	if !v1 {
		at, file = mounts[""], "memory.max"
		_ = writeWord(filepath.Join(at.dir, "cgroup.subtree_control"), "+memory") // the limit shows whether it helped
	}
	dir := filepath.Join(at.dir, fmt.Sprintf("berth-test-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no groups can be made here: %v", err)
	}
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	if err := writeWord(filepath.Join(dir, file), strconv.Itoa(16<<20)); err != nil {
		t.Skipf("no memory controller here: %v", err)
	}
	if v1 {
		return Group{Controllers: map[string]string{"memory": dir}}
	}
	return Group{Unified: dir}
}

// exhaust runs a process in the group that takes more memory than there is.
func exhaust(t *testing.T, g Group) {
	t.Helper()
	script := fmt.Sprintf("echo $$ > %s/cgroup.procs && exec dd if=/dev/zero of=/dev/null bs=64M count=1", g.any())
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err == nil {
		t.Fatalf("it had the memory: %s", out)
	}
}

// TestAlarm has one alarm for two groups, in earnest.
func TestAlarm(t *testing.T) {
	leak.CheckProcess(t)
	if os.Getuid() != 0 {
		t.Skip("groups need root")
	}
	one, two := memoryGroup(t, "one"), memoryGroup(t, "two")
	alarm, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	var counts []*OOM
	for _, g := range []Group{one, two} {
		o, err := g.OpenOOM()
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		if err := alarm.Watch(o); err != nil {
			t.Fatal(err)
		}
		counts = append(counts, o)
	}
	rung, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		for {
			if err := alarm.Wait(); err != nil {
				ended <- err
				return
			}
			select {
			case rung <- struct{}{}:
			default:
			}
		}
	}()
	for i, g := range []Group{two, one, two} {
		for len(rung) > 0 { // an alarm may ring without a cause
			<-rung
		}
		exhaust(t, g)
		select {
		case <-rung:
		case <-time.After(10 * time.Second):
			t.Fatalf("no alarm for the %d. time", i+1)
		}
	}
	for i, want := range []uint64{1, 2} {
		if kills, _, err := counts[i].Kills(); err != nil || kills != want {
			t.Errorf("group %d: %d kills, %v; want %d", i, kills, err, want)
		}
	}
	if err := alarm.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a wait goes on without its alarm")
	}
}
