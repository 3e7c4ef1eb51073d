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

// TestMkdirs: where inodes come back late a layer's files begin apart from the rest,
// and what is made in that does not.
func TestMkdirs(t *testing.T) {
	d, err := OpenDirs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(d.Root(), &st); err != nil {
		t.Fatal(err)
	}
	for id, c := range []struct{ layer, apart bool }{{true, true}, {true, false}, {false, true}} {
		d.apart = c.apart
		dir := d.Path(ID(id))
		if err := errors.Join(os.Mkdir(dir, 0o700), d.Mkdirs(dir, c.layer, "fs", "work", "more")); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"fs", "work", "more"} {
			if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode() != fs.ModeDir|0o711 {
				t.Errorf("%+v: %s: %v, %v", c, name, info, err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
			t.Errorf("%+v: %v, %v", c, entries, err)
		}
		if st.Type != unix.EXT4_SUPER_MAGIC {
			continue
		}
		if got := spreads(t, dir); got != (c.layer && c.apart) {
			t.Errorf("%+v: begin apart: %v", c, got)
		}
		if spreads(t, filepath.Join(dir, "fs")) {
			t.Errorf("%+v: what is in it begins apart", c)
		}
	}
	spread(filepath.Join(d.Root(), "missing"))
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
	for text, want := range map[string][2]bool{"211\n": {true, false}, "<none>\n": {false, true}, "": {}, "0\n": {}, "-1\n": {}} {
		if has, none := journal(text); has != want[0] || none != want[1] {
			t.Errorf("%q: %v, %v", text, has, none)
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
