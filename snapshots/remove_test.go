package snapshots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/leak"
)

// deep makes n directories within each other, as a process can that never names
// them from the top.
func deep(t *testing.T, top string, n int) {
	t.Helper()
	fd, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
	for i := 0; i < n && err == nil; i++ {
		if err = unix.Mkdirat(fd, "d", 0o700); err != nil {
			break
		}
		var next int
		next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	if err == nil {
		err = unix.Mknodat(fd, "file", unix.S_IFREG|0o600, 0)
	}
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeepTree removes and measures a tree that is deeper than there may be
// open files.
func TestDeepTree(t *testing.T) {
	leak.Check(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	const files = 4000
	low := unix.Rlimit{Cur: min(files, limit.Cur), Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)

	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	deep(t, dir, files+100)
	if usage, err := Measure(context.Background(), dir); !errors.Is(err, errdefs.ErrResourceExhausted) || usage.Inodes != MaxDepth+1 {
		t.Errorf("measure: %+v, %v", usage, err)
	}
	if err := removeTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestWideTree removes many entries of all sorts, among them directories with
// something in them, and links that lead out.
func TestWideTree(t *testing.T) {
	leak.Check(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tree")
	for i := range 300 {
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Join(sub, "a", "b"), 0o700),
			os.WriteFile(filepath.Join(sub, "file"), nil, 0), os.Symlink(outside, filepath.Join(sub, "link"))); err != nil {
			t.Fatal(err)
		}
	}
	if usage, err := Measure(context.Background(), dir); err != nil || usage.Inodes != 1501 {
		t.Errorf("%+v, %v", usage, err)
	}
	for range 2 {
		if err := removeTree(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestRemoveStopsAtMount asks the remover for a tree in which something is
// mounted, which removeTree would have unmounted.
func TestRemoveStopsAtMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/m", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir+"/m", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir+"/m", 0)
	if err := os.WriteFile(dir+"/m/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := remover{top: dir}
	if err := r.run(); err == nil {
		t.Error("it removed a tree with a mount in it")
	}
	if _, err := os.Stat(dir + "/m/precious"); err != nil {
		t.Error(err)
	}
}
