package snapshots

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpread: on ext4 the directories of snapshots begin apart from each other, and
// what is in them does not.
func TestSpread(t *testing.T) {
	root := t.TempDir()
	for range 2 { // the second time it is so already
		d, err := OpenDirs(root)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return // it opens, and that is all
	}
	inner := root + "/snapshots/1"
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{root: false, root + "/snapshots": true, inner: false} {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		f.Close()
		if err != nil || (flags&topDir != 0) != want {
			t.Errorf("%s: flags %#x, %v; begin apart: %v", dir, flags, err, want)
		}
	}
}
