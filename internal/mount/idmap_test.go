package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// ownerOf gives the owner of a file as UID:GID.
func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// mapped is what an id-mapped mount takes in its options.
var mapped = []string{"uidmap=0:100000:1000,1000:7:1", "gidmap=0:200000:65536"}

func tryMount(t *testing.T, m Mount, target string) {
	t.Helper()
	err := m.Do(target)
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := UnmountAll(target); err != nil {
			t.Error(err)
		}
	})
}

// TestMappedBind shows other owners of what is there, and writes them back.
func TestMappedBind(t *testing.T) {
	leak.Check(t)
	source, target := t.TempDir(), t.TempDir()
	for name, id := range map[string]int{"root": 0, "user": 1000, "nobody": 5000} {
		path := filepath.Join(source, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, id, id)); err != nil {
			t.Fatal(err)
		}
	}
	tryMount(t, Mount{Type: "bind", Source: source, Options: append([]string{"rbind", "ro"}, mapped...)}, target)
	for name, want := range map[string]string{"root": "100000:200000", "user": "7:201000", "nobody": "65534:205000"} {
		if got := ownerOf(t, filepath.Join(target, name)); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
	}
	if err := os.Remove(filepath.Join(target, "root")); !errors.Is(err, unix.EROFS) {
		t.Errorf("written through a read-only mount: %v", err)
	}
	if got := ownerOf(t, filepath.Join(source, "root")); got != "0:0" {
		t.Errorf("on disk it belongs to %s", got)
	}
}

// TestMappedBindOfOwn leaves alone what the container has written itself.
func TestMappedBindOfOwn(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	if err := os.Chown(source, 100000, 200000); err != nil {
		t.Fatal(err)
	}
	tryMount(t, Mount{Type: "bind", Source: source, Options: append([]string{"rbind"}, mapped...)}, target)
	if got := ownerOf(t, target); got != "100000:200000" {
		t.Errorf("it belongs to %s", got)
	}
}

// TestMappedOverlay maps the owners in lower directories, and not in the upper one.
func TestMappedOverlay(t *testing.T) {
	leak.Check(t)
	base, target := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", t.TempDir()) // other tests mount in the common one
	path := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"one", "two", "odd:name", "upper", "work"} {
		if err := os.Mkdir(path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"one/a", "two/b", "odd:name/c"} {
		if err := os.WriteFile(path(name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(path("upper"), 100000, 200000); err != nil {
		t.Fatal(err)
	}
	tryMount(t, Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"lowerdir=" + path("one") + ":" + path("two") + ":" + path(`odd\:name`), "upperdir=" + path("upper"), "workdir=" + path("work"),
	}, mapped...)}, target)
	for _, name := range []string{"a", "b", "c", "."} {
		if got := ownerOf(t, filepath.Join(target, name)); got != "100000:200000" {
			t.Errorf("%s belongs to %s", name, got)
		}
	}
	// What is copied up keeps the owner that shows, on disk too.
	if err := os.Chmod(filepath.Join(target, "b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, path("upper/b")); got != "100000:200000" {
		t.Errorf("copied up, it belongs to %s", got)
	}
	if got := ownerOf(t, path("two/b")); got != "0:0" {
		t.Errorf("below it belongs to %s", got)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMappedRefused says what can't be mapped.
func TestMappedRefused(t *testing.T) {
	leak.Check(t)
	target := t.TempDir()
	for name, m := range map[string]Mount{
		"relative lower":        {Type: "overlay", Options: append([]string{"lowerdir=a:b"}, mapped...)},
		"no lower":              {Type: "overlay", Options: mapped},
		"overlapping map":       {Type: "bind", Source: t.TempDir(), Options: []string{"bind", "uidmap=0:1:10,5:50:10", "gidmap=0:1:1"}},
		"no source":             {Type: "bind", Source: "/nowhere", Options: append([]string{"bind"}, mapped...)},
		"a file system without": {Type: "bind", Source: "/proc", Options: append([]string{"bind"}, mapped...)},
	} {
		if err := m.Do(target); err == nil {
			t.Errorf("%s: mounted", name)
			if err := UnmountAll(target); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
