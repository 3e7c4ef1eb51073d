package activate

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
)

var ctx = context.Background()

func newPlace(t *testing.T) (*Place, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	dir := t.TempDir()
	return &Place{Root: filepath.Join(dir, "mounts")}, dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func bind(dir string) mount.Mount {
	return mount.Mount{Type: "bind", Source: dir, Options: []string{"ro", "rbind"}}
}

func TestNeeds(t *testing.T) {
	for kinds, want := range map[string]bool{
		"bind": false, "overlay": false, "erofs": false, "bind,overlay": false, "fuse/x": false,
		"format/overlay": true, "bind,format/mkdir/overlay": true, "mkfs/ext4": true, "mkdir/bind": true, "loop,ext4": true,
	} {
		var mounts []mount.Mount
		for kind := range strings.SplitSeq(kinds, ",") {
			mounts = append(mounts, mount.Mount{Type: kind})
		}
		if Needs(mounts) != want {
			t.Errorf("%s: %v", kinds, !want)
		}
	}
}

// TestOverlayOfBinds has a template name the mounts before it, with directories
// made on one of them, and mounts what is left as a client does.
func TestOverlayOfBinds(t *testing.T) {
	p, dir := newPlace(t)
	for _, name := range []string{"one", "two", "rw"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	must(t, os.WriteFile(dir+"/one/f", []byte("1"), 0o644), os.WriteFile(dir+"/two/f", []byte("2"), 0o644), os.WriteFile(dir+"/two/g", nil, 0o644))
	made, err := p.Make(ctx, 7, []mount.Mount{
		bind(dir + "/one"), bind(dir + "/two"), {Type: "bind", Source: dir + "/rw", Options: []string{"rw", "rbind"}},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 2 }}/upper:0751:5:6", "X-containerd.mkdir.path={{ mount 2 }}/work",
			"lowerdir={{ overlay 0 1 }}", "upperdir={{ mount 2 }}/upper", "workdir={{ mount 2 }}/work",
		}},
		{Type: "bind", Source: dir + "/one", Target: "g"},
	})
	must(t, err)
	if len(made.Active) != 3 || len(made.System) != 2 || made.System[0].Type != "overlay" || made.System[1].Source != dir+"/one" {
		t.Fatalf("%+v", made)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/rw/upper", &st); err != nil || st.Mode&0o7777 != 0o751 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("upper: %v %o %d:%d", err, st.Mode, st.Uid, st.Gid)
	}
	target := t.TempDir()
	must(t, mount.All(made.System[:1], target))
	data, err := os.ReadFile(target + "/f")
	if err != nil || string(data) != "1" {
		t.Errorf("%q, %v", data, err)
	}
	must(t, os.WriteFile(target+"/new", nil, 0o644), mount.UnmountAll(target))
	if _, err := os.Stat(dir + "/rw/upper/new"); err != nil {
		t.Error(err)
	}
	if ids := ids(t, p); !slices.Equal(ids, []uint64{7}) {
		t.Errorf("%v", ids)
	}
	must(t, p.Remove(ctx, 7), p.Remove(ctx, 7))
	if ids := ids(t, p); len(ids) != 0 {
		t.Errorf("%v", ids)
	}
}

func ids(t *testing.T, p *Place) (all []uint64) {
	t.Helper()
	for id, err := range p.IDs(ctx) {
		must(t, err)
		all = append(all, id)
	}
	return all
}

// needMkfs skips a test where a file system can't be made or mounted; in the
// virtual machine, which has all it takes, it fails.
func needMkfs(t *testing.T, kind string) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("BERTH_VM") != "" {
		skip = t.Fatalf
	}
	if _, err := exec.LookPath("mkfs." + kind); err != nil {
		skip("needs mkfs.%s (packages e2fsprogs, xfsprogs)", kind)
	}
	// A kernel that knows it says that this is no such file system.
	if err := (mount.Mount{Type: kind, Source: "none"}).Do(t.TempDir()); errors.Is(err, unix.ENODEV) {
		skip("%v", err)
	}
}

// TestImage makes an image, mounts it by a loop device, and finds it as it was
// the next time.
func TestImage(t *testing.T) {
	for kind, c := range map[string]struct {
		size  string
		bytes int64
		magic int64
	}{
		"ext2": {"8MiB", 8 << 20, unix.EXT2_SUPER_MAGIC},
		"ext3": {"8MiB", 8 << 20, unix.EXT3_SUPER_MAGIC},
		"ext4": {"8MiB", 8 << 20, unix.EXT4_SUPER_MAGIC},
		"xfs":  {"320MiB", 320 << 20, unix.XFS_SUPER_MAGIC},
	} {
		t.Run(kind, func(t *testing.T) {
			needMkfs(t, kind)
			p, dir := newPlace(t)
			mounts := []mount.Mount{
				{Type: "mkfs/" + kind, Source: dir + "/disk.img", Options: []string{
					"loop", "X-containerd.mkfs.fs=" + kind, "X-containerd.mkfs.size=" + c.size, "X-containerd.mkfs.uuid=550e8400-e29b-41d4-a716-446655440000"}},
				{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/data", Options: []string{"X-containerd.mkdir.path={{ mount 0 }}/data:0755", "rbind"}},
			}
			for i := range 2 {
				made, err := p.Make(ctx, 1, mounts)
				must(t, err)
				var st unix.Statfs_t
				must(t, unix.Statfs(made.System[0].Source, &st))
				if st.Type != c.magic {
					t.Errorf("a file system of type %x", st.Type)
				}
				file := filepath.Join(made.System[0].Source, "file")
				if _, err := os.Stat(file); (err == nil) != (i == 1) {
					t.Errorf("time %d: %v", i, err)
				}
				must(t, os.WriteFile(file, []byte("x"), 0o644), p.Remove(ctx, 1))
			}
			var st unix.Stat_t
			must(t, unix.Stat(dir+"/disk.img", &st))
			if st.Size != c.bytes || st.Blocks*512 > c.bytes/2 {
				t.Errorf("%d bytes, %d on disk", st.Size, st.Blocks*512)
			}
			if out, err := exec.Command("blkid", "-o", "value", "-s", "UUID", dir+"/disk.img").Output(); err == nil && strings.TrimSpace(string(out)) != "550e8400-e29b-41d4-a716-446655440000" {
				t.Errorf("uuid %q", out)
			}
			eventually(t, "the loop device is let go of", func() bool { return len(bound(t, dir)) == 0 })
		})
	}
}

// TestImageTooSmall: what mkfs has to say reaches the client.
func TestImageTooSmall(t *testing.T) {
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		needMkfs(t, "xfs")
	}
	p, dir := newPlace(t)
	_, err := p.Make(ctx, 1, []mount.Mount{{Type: "mkfs/xfs", Source: dir + "/disk", Options: []string{"loop", "X-containerd.mkfs.fs=xfs", "X-containerd.mkfs.size=4MiB"}}})
	if err == nil || !strings.Contains(err.Error(), "mkfs.xfs") {
		t.Error(err)
	}
	t.Log(err)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestLoop gives a device that the caller mounts itself.
func TestLoop(t *testing.T) {
	for kind, size := range map[string]string{"ext4": "4MiB", "xfs": "320MiB"} {
		t.Run(kind, func(t *testing.T) {
			needMkfs(t, kind)
			p, dir := newPlace(t)
			made, err := p.Make(ctx, 1, []mount.Mount{
				{Type: "mkfs/loop", Source: dir + "/disk.img", Options: []string{"X-containerd.mkfs.fs=" + kind, "X-containerd.mkfs.size=" + size}},
				{Type: "format/" + kind, Source: "{{ source 0 }}"},
			})
			must(t, err)
			if len(made.Active) != 1 || len(made.System) != 1 || !strings.HasPrefix(made.System[0].Source, "/dev/loop") {
				t.Fatalf("%+v", made)
			}
			target := t.TempDir()
			must(t, mount.All(made.System, target))
			if len(bound(t, dir)) != 1 {
				t.Errorf("bound: %q", bound(t, dir))
			}
			// It goes as soon as nobody uses it.
			must(t, p.Remove(ctx, 1), mount.UnmountAll(target))
			eventually(t, "the loop device is let go of", func() bool { return len(bound(t, dir)) == 0 })
		})
	}
}

// bound lists the loop devices of files below dir.
func bound(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), dir) {
			all = append(all, file)
		}
	}
	return all
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

// TestMakeErrors: what can't be made says why and leaves nothing.
func TestMakeErrors(t *testing.T) {
	p, dir := newPlace(t)
	p.Roots = []string{dir + "/allowed"}
	p.MaxImage = 64 << 20
	outside := t.TempDir()
	must(t, os.Mkdir(dir+"/allowed", 0o755), os.Mkdir(dir+"/image", 0o755), os.Symlink(outside, dir+"/image/link"), os.Symlink(outside, dir+"/allowed/link"))
	one := func(m mount.Mount) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir + "/image", Options: []string{"rbind"}}, m}
	}
	overlay := func(options ...string) []mount.Mount {
		return one(mount.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options})
	}
	image := func(source string, options ...string) []mount.Mount {
		return one(mount.Mount{Type: "mkfs/ext4", Source: source, Options: options})
	}
	for name, c := range map[string]struct {
		mounts []mount.Mount
		want   error
	}{
		"nothing to do":        {[]mount.Mount{bind(dir)}, errdefs.ErrNotImplemented},
		"unknown handler":      {[]mount.Mount{{Type: "format/magic/bind", Source: dir}}, errdefs.ErrNotImplemented},
		"unknown word":         {overlay("lowerdir={{ exec 0 }}"), errdefs.ErrInvalidArgument},
		"no such mount":        {overlay("lowerdir={{ mount 1 }}"), errdefs.ErrInvalidArgument},
		"negative":             {overlay("lowerdir={{ mount -1 }}"), errdefs.ErrInvalidArgument},
		"too few":              {overlay("lowerdir={{ overlay 0 }}"), errdefs.ErrInvalidArgument},
		"no end":               {overlay("lowerdir={{ mount 0"), errdefs.ErrInvalidArgument},
		"empty":                {overlay("lowerdir={{}}"), errdefs.ErrInvalidArgument},
		"directory elsewhere":  {overlay("X-containerd.mkdir.path=" + dir + "/other"), errdefs.ErrPermissionDenied},
		"directory by dots":    {overlay("X-containerd.mkdir.path={{ mount 0 }}/../x"), errdefs.ErrInvalidArgument},
		"bad mode":             {overlay("X-containerd.mkdir.path={{ mount 0 }}/x:99"), errdefs.ErrInvalidArgument},
		"unknown mkdir option": {overlay("X-containerd.mkdir.exec=/bin/sh"), errdefs.ErrInvalidArgument},
		"image elsewhere":      {image(dir+"/disk", "X-containerd.mkfs.size=8MiB"), errdefs.ErrPermissionDenied},
		"image without a size": {image(dir + "/allowed/disk"), errdefs.ErrInvalidArgument},
		"image too large":      {image(dir+"/allowed/disk", "X-containerd.mkfs.size=65MiB"), errdefs.ErrResourceExhausted},
		"image of what":        {image(dir+"/allowed/disk", "X-containerd.mkfs.size=8MiB", "X-containerd.mkfs.fs=../sh"), errdefs.ErrInvalidArgument},
		"image with options":   {image(dir+"/allowed/disk", "X-containerd.mkfs.size=8MiB", "X-containerd.mkfs.uuid=-d /etc"), errdefs.ErrInvalidArgument},
		"image through a link": {image(dir+"/allowed/link/disk", "X-containerd.mkfs.size=8MiB"), nil},
		"loop of nothing":      {[]mount.Mount{{Type: "loop", Source: dir + "/none"}}, os.ErrNotExist},
		"loop of a directory":  {[]mount.Mount{{Type: "loop", Source: dir}}, nil},
		"directory by a link":  {overlay("X-containerd.mkdir.path={{ mount 0 }}/link/x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			made, err := p.Make(ctx, 1, c.mounts)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%+v, %v; want %v", made, err, c.want)
			}
			if ids := ids(t, p); len(ids) != 0 {
				t.Errorf("left: %v", ids)
			}
			for _, dir := range []string{outside, dir + "/allowed"} {
				entries, err := os.ReadDir(dir)
				must(t, err)
				for _, e := range entries {
					if e.Name() != "link" {
						t.Errorf("left: %s/%s", dir, e.Name())
					}
				}
			}
		})
	}
}

// TestSlowMkfs: a program that hangs is killed with all it has started.
func TestSlowMkfs(t *testing.T) {
	p, dir := newPlace(t)
	p.Timeout = 100 * time.Millisecond
	must(t, os.WriteFile(dir+"/mkfs.ext4", []byte("#!/bin/sh\nsleep 1000 & echo $! >"+dir+"/pid; wait\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	_, err := p.Make(ctx, 1, []mount.Mount{{Type: "mkfs/ext4", Source: dir + "/disk", Options: []string{"X-containerd.mkfs.size=8MiB"}}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/disk"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an image: %v", err)
	}
}

func FuzzFill(f *testing.F) {
	f.Add("{{ mount 0 }}/x:{{overlay 1 0}}")
	f.Add("{{source 1}}{{target 0}}{{")
	before := []Active{{Mount: mount.Mount{Source: "s"}, Point: "/p"}, {Point: "/q:r"}}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := fill(text, before)
		if err == nil && !strings.Contains(text, "{{") && out != text {
			t.Errorf("%q became %q", text, out)
		}
	})
}
