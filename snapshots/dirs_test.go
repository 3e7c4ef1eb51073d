package snapshots

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpread: on ext4 what is made in a directory begins apart from the rest, and
// what is made in that does not.
func TestSpread(t *testing.T) {
	root := t.TempDir()
	for range 2 { // the second time it is so already
		Spread(root)
	}
	Spread(filepath.Join(root, "missing"))
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		return // it is told, and that is all
	}
	inner := filepath.Join(root, "fs")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{root: true, inner: false} {
		if got := spreads(t, dir); got != want {
			t.Errorf("%s: begin apart: %v", dir, got)
		}
	}
}

func spreads(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	return flags&topDir != 0
}

// TestJournal reads what Linux says in /sys/fs/ext4/DEVICE/journal_task: the file is
// there without a journal too.
func TestJournal(t *testing.T) {
	for text, want := range map[string]bool{"211\n": true, "<none>\n": false, "": false, "0\n": false, "-1\n": false} {
		if got := isTask(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestFlushed: where no journal keeps names in order, each directory that was made
// is flushed; one that isn't there shows it.
func TestFlushed(t *testing.T) {
	d, err := OpenDirs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fill := func(dir string) error { return os.Mkdir(filepath.Join(dir, "fs"), 0o700) }
	for _, d.inOrder = range []bool{true, false} {
		err := d.Create(context.Background(), 1, fill, "fs", "missing")
		if d.inOrder && err != nil || !d.inOrder && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("names in order %v: %v", d.inOrder, err)
		}
		if err := d.Remove(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
	}
}
