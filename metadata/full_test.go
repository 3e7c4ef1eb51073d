package metadata

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/powercut"
)

// smallTmpfs mounts a file system of its own.
func smallTmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		t.Skip("needs to mount a file system of its own:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp takes all space that there is.
func fillUp(t *testing.T, dir, name string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 64 << 10, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// saysFull fails the test unless err says whose disk is full and what to do.
func saysFull(t *testing.T, err error, dir string) {
	t.Helper()
	if !isFull(err) || !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "remove images") {
		t.Errorf("a full disk: %v", err)
	}
}

// TestDiskFull fills the disk of the database to the last byte. What takes space
// is refused; removals and collections, and with them everything that makes room,
// go on, also after a restart.
func TestDiskFull(t *testing.T) {
	for name, mounted := range map[string]func(*testing.T) string{
		"tmpfs": smallTmpfs, "ext4": func(t *testing.T) string { return powercut.New(t).Dir },
	} {
		t.Run(name, func(t *testing.T) {
			leak.CheckProcess(t)
			diskFull(t, mounted(t))
		})
	}
}

func diskFull(t *testing.T, dir string) {
	w := newWorldIn(t, dir)
	s := Scope{Namespace: "ns"}
	const containers, blobs = 300, 200
	for i := range containers {
		c := testContainer(fmt.Sprint("c", i))
		c.Spec.Value = make([]byte, 6<<10)
		w.must(second(w.Containers(s).Create(bg, c)))
	}
	for i := range blobs {
		w.blob(s, fmt.Sprint("blob ", i), map[string]string{labels.GCRoot: "1"})
	}
	native := w.snapshotter(s, "native")
	for i := range 50 {
		w.layer(native, fmt.Sprint("layer ", i), "", nil)
	}
	fillUp(t, dir, "hog")

	made := containers
	full := func() {
		t.Helper()
		var err error
		for err == nil && made < containers+100 { // some may still fit
			c := testContainer(fmt.Sprint("c", made))
			c.Spec.Value = make([]byte, 100<<10)
			if _, err = w.Containers(s).Create(bg, c); err == nil {
				made++
			}
		}
		saysFull(t, err, dir)
		// Collecting now, as clients ask for it.
		l, err := w.Leases(s).Create(bg, "", map[string]string{labels.GCExpire: "2000-01-01T00:00:00Z"})
		w.must(err)
		w.must(w.Leases(s).Delete(bg, l.Id))
		all, err := w.Containers(s).List(bg)
		if err != nil || len(all) != made {
			t.Errorf("%d, %v; want %d", len(all), err, made)
		}
	}
	full()
	w.restart()
	fillUp(t, dir, "hog too")
	full()

	if r := w.collect(); r.Snapshots != 50 {
		t.Errorf("%+v", r)
	}
	fillUp(t, dir, "hog of what was removed")
	for i := range blobs {
		w.must(w.Blobs(s).Delete(bg, digest.FromString(fmt.Sprint("blob ", i))))
	}
	w.collect()
	for i := range made {
		fillUp(t, dir, "hog again")
		w.must(w.Containers(s).Delete(bg, fmt.Sprint("c", i)))
	}
	w.mustBeClean()

	for _, hog := range []string{"hog", "hog too", "hog of what was removed", "hog again"} {
		w.must(os.Remove(filepath.Join(dir, hog)))
	}
	w.must(second(w.Containers(s).Create(bg, testContainer("again"))))
	w.mustBeClean()
	w.restart()
	w.mustBeClean()
	w.close()
}

// TestFullDiskKeepsNothing: a write that the disk has no room for says so, and
// leaves no half of a blob behind.
func TestFullDiskKeepsNothing(t *testing.T) {
	leak.CheckProcess(t)
	dir := smallTmpfs(t)
	w := newWorldIn(t, dir)
	s := Scope{Namespace: "ns"}
	for range 2 {
		writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{})
		w.must(err)
		for err == nil {
			_, err = writer.Write(make([]byte, 1<<20))
		}
		if !isFull(err) || !strings.Contains(err.Error(), dir) {
			t.Errorf("a full disk: %v", err)
		}
		w.must(writer.Close())
		if _, err := w.Blobs(s).Status(bg, "r"); !errdefs.IsNotFound(err) {
			t.Errorf("an ingest is left: %v", err)
		}
		var fs unix.Statfs_t
		w.must(unix.Statfs(dir, &fs))
		if free := int64(fs.Bavail) * fs.Bsize; free < 8<<20 {
			t.Errorf("%d bytes are free again", free)
		}
	}
	w.mustBeClean()
	w.close()
}
