package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// layers makes n lower directories, each with a file of its own and one that
// they all have.
func layers(t *testing.T, dir string, n int) []string {
	t.Helper()
	var dirs []string
	for i := range n {
		d := mkdir(t, dir, "snapshots", fmt.Sprint(1000+i), "fs")
		write(t, d+"/"+fmt.Sprint(i), "x")
		write(t, d+"/top", fmt.Sprint(i))
		dirs = append(dirs, d)
	}
	slices.Reverse(dirs)
	return dirs
}

func overlayOf(t *testing.T, dir string, lower []string) Mount {
	t.Helper()
	return Mount{Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + mkdir(t, dir, "w", "work"), "upperdir=" + mkdir(t, dir, "w", "fs"),
		"lowerdir=" + strings.Join(lower, ":"), "index=off",
	}}
}

// probeLayers checks that the overlay at target shows n layers and can be
// written to.
func probeLayers(t *testing.T, target, upper string, n int) {
	t.Helper()
	read(t, target+"/top", fmt.Sprint(n-1))
	for i := range n {
		read(t, target+"/"+fmt.Sprint(i), "x")
	}
	write(t, target+"/new", "x")
	read(t, upper+"/new", "x")
}

func TestOverlayOfManyLayers(t *testing.T) {
	for _, n := range []int{3, 130, 480} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := scratch(t)
			m := overlayOf(t, dir, layers(t, dir, n))
			target := mkdir(t, dir, "target")
			if err := m.Do(target); err != nil {
				t.Fatal(err)
			}
			probeLayers(t, target, dir+"/w/fs", n)
			unmount(t, target)
			view := Mount{Type: "overlay", Source: "overlay", Options: append(m.Options[2:], "ro", "nosuid")}
			if err := view.Do(target); err != nil {
				t.Fatal(err)
			}
			if flagsOf(t, target)&(unix.ST_RDONLY|unix.ST_NOSUID) != unix.ST_RDONLY|unix.ST_NOSUID {
				t.Error("flags are lost")
			}
			unmount(t, target)
		})
	}
}

func TestOverlayRelative(t *testing.T) {
	dir := scratch(t)
	m := overlayOf(t, dir, layers(t, dir, 130))
	target := mkdir(t, dir, "target")
	before, _ := os.Getwd()
	o, err := parse(m.Type, m.Options)
	if err != nil {
		t.Fatal(err)
	}
	if err := mountRelative(m.Source, place{path: target, fd: -1}, o); err != nil {
		t.Fatal(err)
	}
	probeLayers(t, target, dir+"/w/fs", 130)
	if after, _ := os.Getwd(); after != before {
		t.Errorf("the working directory went from %s to %s", before, after)
	}
	unmount(t, target)
}

func TestOverlayLongNames(t *testing.T) {
	dir := scratch(t)
	long := mkdir(t, dir, strings.Repeat("l", 200), strings.Repeat("m", 200))
	m := overlayOf(t, long, layers(t, long, 30))
	target := mkdir(t, dir, "target")
	if err := m.Do(target); err != nil {
		t.Fatal(err)
	}
	probeLayers(t, target, long+"/w/fs", 30)
	unmount(t, target)
}

func TestOverlayErrors(t *testing.T) {
	dir := scratch(t)
	target := mkdir(t, dir, "target")
	m := overlayOf(t, dir, append(layers(t, dir, 2), dir+"/absent"))
	if err := m.Do(target); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("absent layer: %v", err)
	}
	m = overlayOf(t, dir, append(layers(t, dir, 130), dir+"/absent"))
	if err := m.Do(target); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("absent last of many layers: %v", err)
	}
	m = overlayOf(t, dir, layers(t, dir, 2))
	m.Options = append(m.Options, "nonsense=1")
	if err := m.Do(target); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("unknown option: %v", err)
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct{ lower, base, short string }{
		{"/r/snapshots/12/fs:/r/snapshots/3/fs", "/r/snapshots", "12/fs:3/fs"},
		{"/r/a/b:/r/ab", "/r", "a/b:ab"},
		{`/r/a\:b/1:/r/a\:b/2`, "/r/a:b", "1:2"},
		{"/a/b:/c/d", "", ""},
		{"a/b:a/c", "a", "b:c"},
	} {
		base, short := shorten([]string{"x", "lowerdir=" + c.lower, "y"})
		if base != c.base || base != "" && !slices.Equal(short, []string{"x", "lowerdir=" + c.short, "y"}) {
			t.Errorf("%s: %q %q", c.lower, base, short)
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		fstype, options string
		flags           uintptr
		data            string
		err             error
	}{
		{"bind", "rbind,ro", unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY, "", nil},
		{"bind", "ro,rw", unix.MS_BIND, "", nil},
		{"none", "bind", unix.MS_BIND, "", nil},
		{"tmpfs", "nosuid,size=1m,x-systemd.automount,strictatime", unix.MS_NOSUID | unix.MS_STRICTATIME, "size=1m", nil},
		{"overlay", "uidmap=0:1:1", 0, "", errdefs.ErrInvalidArgument},
		{"overlay", "uidmap=0:1:1,gidmap=0:1", 0, "", errdefs.ErrInvalidArgument},
		{"overlay", "uidmap=0:1:1,gidmap=0:1:0", 0, "", errdefs.ErrInvalidArgument},
		{"overlay", "uidmap=0:1:1,gidmap=0:1:4294967296", 0, "", errdefs.ErrInvalidArgument},
		{"overlay", "uidmap=0:1:1,gidmap=0:100:5", 0, "", nil},
		{"tmpfs", "uidmap=0:1:1,gidmap=0:100:5", 0, "", errdefs.ErrNotImplemented},
		{"ext4", "loop", 0, "", nil},
		{"ext4", "loop=/dev/loop3", 0, "", errdefs.ErrNotImplemented},
		{"bind", "loop", 0, "", errdefs.ErrInvalidArgument},
		{"overlay", "loop", 0, "", errdefs.ErrInvalidArgument},
		{"mkfs/ext4", "", 0, "", errdefs.ErrNotImplemented},
		{"bind", "size=1m", 0, "", errdefs.ErrInvalidArgument},
	} {
		o, err := parse(c.fstype, strings.Split(c.options, ","))
		if !errors.Is(err, c.err) || o.flags != c.flags || o.joined() != c.data {
			t.Errorf("%s %s: %x %q %v", c.fstype, c.options, o.flags, o.joined(), err)
		}
	}
}

func FuzzShorten(f *testing.F) {
	f.Add("/a/b:/a/c")
	f.Add(`/a\:b:\`)
	f.Fuzz(func(t *testing.T, list string) {
		base, short := shorten([]string{"lowerdir=" + list})
		if base == "" {
			return
		}
		dirs, names := splitLayers(list), splitLayers(strings.TrimPrefix(short[0], "lowerdir="))
		if len(dirs) != len(names) {
			t.Fatalf("%q: %q, %q", list, dirs, names)
		}
		for i := range dirs {
			if base+"/"+names[i] != dirs[i] && filepath.Join(base, names[i]) != filepath.Clean(dirs[i]) {
				t.Errorf("%q became %q in %q", dirs[i], names[i], base)
			}
		}
	})
}
