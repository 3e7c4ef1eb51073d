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
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kind is a file system that a disk can have: its size in bytes, most of which is
// a hole in the image, what mkfs gets, and the options that keep the kernel from
// flushing anything of its own accord while a test runs. xfs writes its log every
// half a minute, and by default refuses the copy of what is mounted.
type kind struct {
	size    int64
	mkfs    []string
	options string
}

var kinds = map[string]kind{
	"ext4": {96 << 20, []string{"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "commit=3000,noauto_da_alloc"},
	"xfs":  {320 << 20, []string{"-q", "-f"}, "nouuid"},
}

const (
	busyTime  = 10 * time.Second
	busyPause = 20 * time.Millisecond
)

// Disk is a disk of its own.
type Disk struct {
	Dir   string // where it is mounted
	image string
	fs    string
}

// New makes an empty disk with ext4 that lasts until the test ends. The test is
// skipped where there can be none: without root, loop devices, the file system or
// its mkfs.
func New(t *testing.T) *Disk {
	t.Helper()
	return NewOn(t, "ext4")
}

// NewOn makes an empty disk with the file system fs: ext4 or xfs.
func NewOn(t *testing.T, fs string) *Disk {
	t.Helper()
	how := kinds[fs]
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	mkfs, err := exec.LookPath("mkfs." + fs)
	if err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/sys/fs/" + fs); err != nil && exec.CommandContext(t.Context(), "modprobe", fs).Run() != nil {
		t.Skipf("this kernel has no %s: %v", fs, err)
	}
	d := &Disk{image: filepath.Join(t.TempDir(), "disk"), fs: fs}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(how.size)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, mkfs, append(slices.Clone(how.mkfs), d.image)...)
	d.mount(t)
	return d
}

// Cut gives a disk with what would be on d after a power cut now. d goes on.
func (d *Disk) Cut(t *testing.T) *Disk {
	t.Helper()
	after := &Disk{image: filepath.Join(t.TempDir(), "disk"), fs: d.fs}
	run(t, "cp", "--sparse=always", d.image, after.image)
	after.mount(t)
	return after
}

// mount mounts the image so that the journal is committed on demand only.
func (d *Disk) mount(t *testing.T) {
	t.Helper()
	d.Dir = t.TempDir()
	run(t, "mount", "-t", d.fs, "-o", "loop,"+kinds[d.fs].options, d.image, d.Dir)
	t.Cleanup(func() {
		err := unix.Unmount(d.Dir, 0)
		// A loop device lets go of a file on the disk some time after it was unmounted.
		for end := time.Now().Add(busyTime); err == unix.EBUSY && time.Now().Before(end); err = unix.Unmount(d.Dir, 0) {
			time.Sleep(busyPause)
		}
		if err != nil {
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
