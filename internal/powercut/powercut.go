// Package powercut owns a disk that tests can cut the power of: a file system
// of its own, of which Cut shows what would be there after the machine had
// stopped at that moment. It is for tests only.
//
// The file system is in an image behind a loop device. What has been flushed is
// in the image; what has not is in the kernel's cache of the file system alone.
// So a copy of the image is what a power cut would leave.
package powercut

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// size of the disk, in bytes. Most of it is a hole in the image.
const size = 96 << 20

// Disk is a disk of its own, an ext4 file system.
type Disk struct {
	Dir   string // where it is mounted
	image string
}

// New makes an empty disk that lasts until the test ends. The test is skipped
// where there can be none: without root, loop devices or mkfs.ext4.
func New(t *testing.T) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip(err)
	}
	d := &Disk{image: filepath.Join(t.TempDir(), "disk")}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(size)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, mkfs, "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image)
	d.mount(t)
	return d
}

// Cut gives a disk with what would be on d after a power cut now. d goes on.
func (d *Disk) Cut(t *testing.T) *Disk {
	t.Helper()
	after := &Disk{image: filepath.Join(t.TempDir(), "disk")}
	run(t, "cp", "--sparse=always", d.image, after.image)
	after.mount(t)
	return after
}

// mount mounts the image so that the kernel flushes nothing of its own accord
// while a test runs: the journal is committed on demand only.
func (d *Disk) mount(t *testing.T) {
	t.Helper()
	d.Dir = t.TempDir()
	run(t, "mount", "-t", "ext4", "-o", "loop,commit=3000,noauto_da_alloc", d.image, d.Dir)
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, 0); err != nil {
			t.Errorf("unmount the test's disk: %v", err)
			_ = unix.Unmount(d.Dir, unix.MNT_DETACH)
		}
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
