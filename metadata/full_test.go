package metadata

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// TestDiskFull fills the disk below the database: changes are refused until
// there is room again, and what was there stays.
func TestDiskFull(t *testing.T) {
	leak.CheckProcess(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skip("needs to mount a file system of its own:", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	w := newWorldIn(t, dir)
	s := Scope{Namespace: "ns"}
	made := 0
	var full error
	for full == nil && made < 1000 {
		c := testContainer(fmt.Sprint("c", made))
		c.Spec.Value = make([]byte, 100<<10)
		if _, full = w.Containers(s).Create(bg, c); full == nil {
			made++
		}
	}
	if !errors.Is(full, unix.ENOSPC) {
		t.Fatalf("after %d containers: %v", made, full)
	}
	for range 3 {
		c := testContainer("more")
		c.Spec.Value = make([]byte, 1<<20)
		if _, err := w.Containers(s).Create(bg, c); !errors.Is(err, unix.ENOSPC) {
			t.Error(err)
		}
	}
	all, err := w.Containers(s).List(bg)
	if err != nil || len(all) != made {
		t.Errorf("%d, %v; want %d", len(all), err, made)
	}
	w.must(unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"))
	w.must(second(w.Containers(s).Create(bg, testContainer("again"))))
	w.must(w.Containers(s).Delete(bg, "c0"))
	w.mustBeClean()
	w.restart()
	w.mustBeClean()
	w.close()
}
