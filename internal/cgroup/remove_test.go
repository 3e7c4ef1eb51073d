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

	"golang.org/x/sys/unix"
)

// hierarchy finds a mounted hierarchy in which this process may make groups.
func hierarchy(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"freezer", ""} {
		if at, ok := parseMounts(mounts)[controller]; ok && unix.Access(at.dir, unix.W_OK) == nil {
			return at.dir
		}
	}
	t.Skip("no hierarchy that can be written to")
	return ""
}

func TestRemove(t *testing.T) {
	dir := hierarchy(t)
	name := fmt.Sprintf("/berth-test-%d", os.Getpid())
	below := filepath.Join(dir, name, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Remove(name) })
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if err := Remove(name); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with a process in it: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := Remove(name); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	for _, nothing := range []string{name, "", "/", "/..", "relative", "system.slice:berth:x"} {
		if err := Remove(nothing); err != nil {
			t.Errorf("%q: %v", nothing, err)
		}
	}
}
