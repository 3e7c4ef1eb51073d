package content_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/content/contenttest"
	"github.com/berthd/berth/internal/leak"
)

var ctx = context.Background()

// disk is a content.Disk that can be reopened.
type disk struct {
	*content.Disk
	root string
}

func open(t *testing.T) *disk {
	t.Helper()
	leak.Check(t)
	d := &disk{root: filepath.Join(t.TempDir(), "store")}
	d.open(t)
	t.Cleanup(func() { d.Close() })
	return d
}

func (d *disk) open(t *testing.T) {
	t.Helper()
	var err error
	if d.Disk, err = content.Open(d.root); err != nil {
		t.Fatal(err)
	}
}

func (d *disk) Reopen(t *testing.T) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.open(t)
}

func (d *disk) path(parts ...string) string {
	return filepath.Join(append([]string{d.root}, parts...)...)
}

// tree lists every file and directory under the store's root.
func (d *disk) tree(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(d.root, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(path, d.root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestSuite(t *testing.T) {
	contenttest.Run(t, func(t *testing.T) contenttest.Store { return open(t) })
}

func TestLayout(t *testing.T) {
	s := open(t)
	d := contenttest.Add(t, s, "r", []byte("hello"))
	want := []string{"", "/blobs", "/blobs/sha256", "/blobs/sha256/" + d.Encoded(), "/ingest"}
	if got := s.tree(t); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
	for name, mode := range map[string]fs.FileMode{"": 0o700, "blobs": 0o700, "blobs/sha256": 0o700, "ingest": 0o700, "blobs/sha256/" + d.Encoded(): 0o444} {
		fi, err := os.Stat(s.path(name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

// TestForeignNames puts things into the store that it has not made.
func TestForeignNames(t *testing.T) {
	s := open(t)
	d := contenttest.Add(t, s, "r", []byte("hello"))
	dir := s.path("blobs", "sha256")
	secret := filepath.Join(t.TempDir(), "secret")
	link := digest.FromString("link")
	directory := digest.FromString("directory")
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "README"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, strings.Repeat("A", 64)), nil, 0o600),
		os.WriteFile(s.path("blobs", "file"), nil, 0o600),
		os.WriteFile(s.path("ingest", "file"), nil, 0o600),
		os.MkdirAll(s.path("blobs", "md5", "x"), 0o700),
		os.MkdirAll(filepath.Join(dir, directory.Encoded()), 0o700),
		os.WriteFile(secret, []byte("secret"), 0o600),
		os.Symlink(secret, filepath.Join(dir, link.Encoded())),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for info, err := range s.All(ctx) {
			if err != nil || info.Digest != d {
				t.Errorf("listed %+v, %v", info, err)
			}
		}
		for info, err := range s.Ingests(ctx) {
			t.Errorf("listed %+v, %v", info, err)
		}
		for _, d := range []digest.Digest{link, directory} {
			if r, err := s.Open(ctx, d); err == nil {
				r.Close()
				t.Errorf("opened %s", d)
			}
			if _, err := s.Stat(ctx, d); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("stat: %v", err)
			}
		}
		s.Reopen(t)
	}
}

// TestLeftovers opens a store in which a process was killed at work.
func TestLeftovers(t *testing.T) {
	s := open(t)
	w := contenttest.Begin(t, s, "kept", content.Expect{})
	w.Write([]byte("hello"))
	w.Close()
	w = contenttest.Begin(t, s, "moved", content.Expect{})
	w.Close()
	var kept string
	entries, _ := os.ReadDir(s.path("ingest"))
	for _, entry := range entries {
		ref, _ := os.ReadFile(s.path("ingest", entry.Name(), "ref"))
		if string(ref) == "kept" {
			kept = entry.Name()
			continue
		}
		if err := os.Remove(s.path("ingest", entry.Name(), "data")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(s.path("ingest", ".tmp-half", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	// What has no bytes is none also before it is swept.
	if _, err := s.Status(ctx, "moved"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("status of an ingest without bytes: %v", err)
	}
	s.Reopen(t)
	entries, _ = os.ReadDir(s.path("ingest"))
	if len(entries) != 1 || entries[0].Name() != kept {
		t.Errorf("left: %v", entries)
	}
	// Damage of any sort only means to begin anew.
	state, err := os.ReadFile(s.path("ingest", kept, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	noDigest := strings.Replace(string(state), `"boot"`, `"expected":"sha256-x","boot"`, 1)
	for _, damage := range [][2]string{{"state.json", "{"}, {"state.json", noDigest}, {"ref", "another"}, {"data", ""}} {
		name, text := damage[0], damage[1]
		path := s.path("ingest", kept, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for info, err := range s.Ingests(ctx) {
			if err != nil || info.Offset != 0 {
				t.Errorf("%s damaged: listed %+v, %v", name, info, err)
			}
		}
		w := contenttest.Begin(t, s, "kept", content.Expect{})
		if info, err := w.Status(); err != nil || info.Offset != 0 {
			t.Errorf("%s damaged: %+v, %v", name, info, err)
		}
		w.Write([]byte("hello"))
		w.Close()
	}
}

// TestShortBlobIsRepaired commits over a blob that has lost bytes.
func TestShortBlobIsRepaired(t *testing.T) {
	s := open(t)
	p := contenttest.Bytes(1000, 1)
	d := contenttest.Add(t, s, "r", p)
	if err := os.Truncate(s.path("blobs", "sha256", d.Encoded()), 10); err != nil {
		t.Fatal(err)
	}
	contenttest.Add(t, s, "r", p)
	contenttest.Holds(t, s, d, p)
}

// TestFullDisk runs out of space in the middle of a write: what is there
// counts, and the ingest goes on when there is space again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	s := &disk{root: filepath.Join(root, "store")}
	s.open(t)
	t.Cleanup(func() { s.Close() })
	p := contenttest.Bytes(2<<20, 1)
	w := contenttest.Begin(t, s, "r", content.Expect{})
	var n int
	var err error
	for err == nil && n < len(p) {
		var m int
		m, err = w.Write(p[n:min(n+300<<10, len(p))])
		n += m
	}
	if !errors.Is(err, unix.ENOSPC) || n == 0 {
		t.Fatalf("%d, %v", n, err)
	}
	info, err := w.Status()
	if err != nil || info.Offset != int64(n) || w.Digest() != digest.FromBytes(p[:n]) {
		t.Fatalf("%+v, %v after %d bytes", info, err, n)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p[n:]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(ctx, int64(len(p)), digest.FromBytes(p)); err != nil {
		t.Fatal(err)
	}
	contenttest.Holds(t, s, digest.FromBytes(p), p)
}

func BenchmarkWrite(b *testing.B) {
	s, err := content.Open(filepath.Join(b.TempDir(), "store"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	p := contenttest.Bytes(1<<20, 1)
	b.SetBytes(64 << 20)
	for b.Loop() {
		w, err := s.Ingest(ctx, "r", content.Expect{})
		if err != nil {
			b.Fatal(err)
		}
		for range 64 {
			if _, err := w.Write(p); err != nil {
				b.Fatal(err)
			}
		}
		info, err := w.Commit(ctx, 0, "")
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(ctx, info.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmall(b *testing.B) {
	s, err := content.Open(filepath.Join(b.TempDir(), "store"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	i := 0
	for b.Loop() {
		i++
		w, err := s.Ingest(ctx, "r", content.Expect{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write([]byte{byte(i), byte(i >> 8), byte(i >> 16)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Commit(ctx, 0, ""); err != nil {
			b.Fatal(err)
		}
	}
}
