package snapshots

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// du asks du(1) what a tree takes: bytes on disk and inodes.
func du(t *testing.T, dir string) (usage Usage) {
	t.Helper()
	for _, q := range []struct {
		flag string
		into *int64
	}{{"--block-size=1", &usage.Size}, {"--inodes", &usage.Inodes}} {
		out, err := exec.Command("du", "-s", q.flag, dir).Output()
		if err != nil {
			t.Skipf("needs GNU du: %v", err)
		}
		if _, err := fmt.Sscan(strings.Fields(string(out))[0], q.into); err != nil {
			t.Fatal(err)
		}
	}
	return usage
}

// TestMeasureIsThatOfDu: sizes are right to the byte, with holes, files of many
// names, also in other directories, long links, devices and attributes.
func TestMeasureIsThatOfDu(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 7 {
		step(os.MkdirAll(at(fmt.Sprintf("d%d/e", i)), 0o755))
	}
	for i := range 40 {
		step(os.WriteFile(at(fmt.Sprintf("d%d/f%d", i%7, i)), make([]byte, i*777), 0o644))
		if i%3 == 0 {
			step(os.Link(at(fmt.Sprintf("d%d/f%d", i%7, i)), at(fmt.Sprintf("d%d/e/l%d", (i+1)%7, i))))
		}
	}
	f, err := os.Create(at("sparse"))
	step(err)
	for _, offset := range []int64{0, 1 << 20, 123456789, 1 << 33} {
		_, err := f.WriteAt([]byte("x"), offset)
		step(err)
	}
	step(f.Truncate(1 << 34))
	step(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 4096))
	step(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 1<<30, 1<<16))
	step(f.Close())
	step(os.Link(at("sparse"), at("d0/sparse")))
	step(os.Symlink(strings.Repeat("x", 500), at("long")))
	step(os.Symlink("short", at("short")))
	step(unix.Mkfifo(at("fifo"), 0o600))
	_ = unix.Setxattr(at("sparse"), "user.big", make([]byte, 3000), 0) // where the file system can
	got, err := Measure(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := du(t, dir); got != want {
		t.Errorf("measured %+v, du says %+v", got, want)
	}
}
