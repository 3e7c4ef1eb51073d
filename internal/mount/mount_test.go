package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// scratch gives a directory for real mounts and fails the test if any are left
// in it.
func scratch(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		points, err := mountPoints(dir)
		if err != nil || len(points) > 0 {
			t.Errorf("mounts left: %v, %v", points, err)
			if err := UnmountAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s: %q, %v; want %q", path, got, err, want)
	}
}

func unmount(t *testing.T, target string) {
	t.Helper()
	if err := UnmountAll(target); err != nil {
		t.Fatal(err)
	}
}

func flagsOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Flags)
}

var tmpfs = Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1m", "mode=755"}}

func TestBindKeepsFlagsWhenMadeReadOnly(t *testing.T) {
	dir := scratch(t)
	source, target := mkdir(t, dir, "source"), mkdir(t, dir, "target")
	if err := tmpfs.Do(source); err != nil {
		t.Fatal(err)
	}
	write(t, source+"/f", "x")
	bind := Mount{Type: "bind", Source: source, Options: []string{"rbind", "ro", "nodev"}}
	if err := bind.Do(target); err != nil {
		t.Fatal(err)
	}
	read(t, target+"/f", "x")
	want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV)
	if got := flagsOf(t, target) & want; got != want {
		t.Errorf("flags %x, want %x", got, want)
	}
	if err := os.WriteFile(target+"/g", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into a read-only bind: %v", err)
	}
	write(t, source+"/g", "the source stays writable")
	again := Mount{Type: "bind", Options: []string{"bind", "remount", "rw", "suid"}}
	if err := again.Do(target); err != nil {
		t.Fatal(err)
	}
	if got := flagsOf(t, target) & want; got != unix.ST_NODEV {
		t.Errorf("flags after remount %x", got)
	}
	unmount(t, dir)
}

func TestPropagation(t *testing.T) {
	dir := scratch(t)
	a, b := mkdir(t, dir, "a"), mkdir(t, dir, "b")
	shared := tmpfs
	shared.Options = append([]string{"rshared"}, shared.Options...)
	if err := shared.Do(a); err != nil {
		t.Fatal(err)
	}
	inner := mkdir(t, a, "inner")
	if err := tmpfs.Do(inner); err != nil {
		t.Fatal(err)
	}
	write(t, inner+"/f", "x")
	if err := (Mount{Type: "bind", Source: a, Options: []string{"rbind"}}).Do(b); err != nil {
		t.Fatal(err)
	}
	read(t, b+"/inner/f", "x")
	// Unmounting the copy must leave the mounts it was copied from.
	unmount(t, b)
	read(t, inner+"/f", "x")
	unmount(t, dir)
}

func TestAllUnwinds(t *testing.T) {
	dir := scratch(t)
	target := mkdir(t, dir, "target")
	bad := Mount{Type: "nosuchfs", Source: "x"}
	err := All([]Mount{tmpfs, tmpfs, bad}, target)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), `"nosuchfs"`) {
		t.Fatalf("%v", err)
	}
	if mounted, _ := mountinfo.Mounted(target); mounted {
		t.Fatal("the first mounts are still there")
	}
	if err := All(nil, target); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatalf("no mounts: %v", err)
	}
}

func TestTargetStaysWithin(t *testing.T) {
	dir := scratch(t)
	target, outside := mkdir(t, dir, "target"), mkdir(t, dir, "outside")
	image := mkdir(t, dir, "image")
	mkdir(t, image, "outside")
	mkdir(t, image, "data")
	if err := os.Symlink("../../../../outside", image+"/link"); err != nil {
		t.Fatal(err)
	}
	root := Mount{Type: "bind", Source: image}
	sub := tmpfs
	sub.Options = append([]string{"ro"}, sub.Options...)
	for _, name := range []string{"link", "../../outside", "/outside", "data"} {
		sub.Target = name
		if err := All([]Mount{root, sub}, target); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if mounted, _ := mountinfo.Mounted(outside); mounted {
			t.Fatalf("%s left the root", name)
		}
		points, _ := mountPoints(target)
		if len(points) != 2 {
			t.Fatalf("%s: mounts %v", name, points)
		}
		unmount(t, target)
	}
	sub.Target = "absent"
	if err := All([]Mount{root, sub}, target); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("absent: %v", err)
	}
	// A bind with flags needs the mount point twice.
	ro := Mount{Type: "bind", Source: outside, Target: "data", Options: []string{"ro", "rbind"}}
	if err := All([]Mount{root, ro}, target); err != nil {
		t.Fatal(err)
	}
	if flagsOf(t, target+"/data")&unix.ST_RDONLY == 0 || flagsOf(t, target)&unix.ST_RDONLY != 0 {
		t.Error("the wrong mount became read-only")
	}
	unmount(t, target)
}

func TestUnmountAll(t *testing.T) {
	dir := scratch(t)
	target := mkdir(t, dir, "target")
	unmount(t, target)
	unmount(t, dir+"/absent")
	for range 3 {
		// A stack whose upper mounts hide what is mounted in the lower ones.
		if err := tmpfs.Do(target); err != nil {
			t.Fatal(err)
		}
		if err := tmpfs.Do(mkdir(t, target, "deep", "er")); err != nil {
			t.Fatal(err)
		}
		if err := tmpfs.Do(mkdir(t, target, "with space\n")); err != nil {
			t.Fatal(err)
		}
	}
	unmount(t, target)
	if points, _ := mountPoints(dir); len(points) != 0 {
		t.Fatalf("left: %v", points)
	}
	if err := UnmountAll("/"); err == nil {
		t.Fatal("unmounting / is no error")
	}
}

func TestUnmountAllDoesNotFollowLinksOfAnImage(t *testing.T) {
	dir := scratch(t)
	victim, target := mkdir(t, dir, "victim"), mkdir(t, dir, "target")
	if err := tmpfs.Do(mkdir(t, victim, "m")); err != nil {
		t.Fatal(err)
	}
	if err := tmpfs.Do(mkdir(t, target, "x", "m")); err != nil {
		t.Fatal(err)
	}
	// Now something is mounted over it in which x is a link.
	if err := tmpfs.Do(target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, target+"/x"); err != nil {
		t.Fatal(err)
	}
	unmount(t, target)
	if mounted, _ := mountinfo.Mounted(victim + "/m"); !mounted {
		t.Error("a mount elsewhere is gone")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	unmount(t, link)
	if mounted, _ := mountinfo.Mounted(victim + "/m"); !mounted {
		t.Error("a link at the target was followed")
	}
	unmount(t, dir)
}

func TestUnmountAllDetachesBusy(t *testing.T) {
	dir := scratch(t)
	if err := tmpfs.Do(dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/busy")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unmount(t, dir)
}

func TestWithTemp(t *testing.T) {
	scratch(t)
	t.Setenv("TMPDIR", t.TempDir())
	stop := errors.New("stop")
	err := WithTemp(context.Background(), []Mount{tmpfs}, func(root string) error {
		write(t, root+"/f", "x")
		if err := SweepTemp(); err != nil {
			t.Error(err)
		}
		read(t, root+"/f", "x")
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(os.TempDir()); len(entries) > 0 {
		t.Fatalf("left: %v", entries)
	}
	// What a killed process leaves: the directories and the mount, no lock.
	dir, _ := os.MkdirTemp("", tempPrefix)
	if err := tmpfs.Do(mkdir(t, dir, tempRoot)); err != nil {
		t.Fatal(err)
	}
	if err := SweepTemp(); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(os.TempDir()); len(entries) > 0 {
		t.Fatalf("not swept: %v", entries)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := WithTemp(ctx, []Mount{tmpfs}, func(string) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
}
