package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

// opened is a driver with one committed layer, "base".
func opened(t *testing.T, c Config) *snapshottest.Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if c.Root == "" {
		leak.Check(t)
		c.Root = t.TempDir()
	}
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	s := snapshottest.NewStore(d)
	if _, err := s.Create(snapshots.Active, "making", "", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit("base", "making", ""); err != nil {
		t.Fatal(err)
	}
	return s
}

// write mounts a snapshot, makes a file in it and unmounts it.
func write(t *testing.T, mounts []mount.Mount, name string) {
	t.Helper()
	root := t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		t.Fatal(err)
	}
	err := os.WriteFile(filepath.Join(root, name), nil, 0o644)
	if err := errors.Join(err, mount.UnmountAll(root)); err != nil {
		t.Fatal(err)
	}
}

// TestVolatile: a writable layer that is not flushed is mounted again within the
// boot, and refused after it; layers of images are never volatile.
func TestVolatile(t *testing.T) {
	leak.Check(t)
	root := t.TempDir()
	s := opened(t, Config{Root: root, Volatile: true, BootID: "one"})
	mounts, err := s.Create(snapshots.Active, "work", "base", nil)
	if err != nil || !slices.Contains(mounts[0].Options, "volatile") {
		t.Fatalf("%v, %v", mounts, err)
	}
	write(t, mounts, "a")
	if mounts, err = s.Mounts("work"); err != nil {
		t.Fatal(err)
	}
	write(t, mounts, "b")
	// While it is mounted the marker stays.
	if mounts, err = s.Mounts("work"); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := mount.All(mounts, at); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mounts("work"); err != nil {
		t.Error(err)
	}
	mark := filepath.Join(root, "snapshots/2", marker)
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(at); err != nil {
		t.Fatal(err)
	}
	view, err := s.Create(snapshots.View, "view", "base", nil)
	if err != nil || slices.Contains(view[0].Options, "volatile") {
		t.Errorf("%v, %v", view, err)
	}
	unpacking, err := s.Create(snapshots.Active, "extract", "base", map[string]string{labelDiffID: "sha256:x"})
	if err != nil || slices.Contains(unpacking[0].Options, "volatile") {
		t.Errorf("%v, %v", unpacking, err)
	}

	// The machine went down.
	next, err := Open(Config{Root: root, Volatile: true, BootID: "two"})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	o := snapshots.CreateOptions{Kind: snapshots.Active}
	if _, err := next.Mounts(2, []snapshots.ID{1}, o); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), mark) {
		t.Errorf("after a reboot: %v", err)
	}
	if err := os.RemoveAll(mark); err != nil { // as the error says
		t.Fatal(err)
	}
	if mounts, err = next.Mounts(2, []snapshots.ID{1}, o); err != nil {
		t.Fatal(err)
	}
	write(t, mounts, "c")
	if _, err := next.Mounts(2, []snapshots.ID{1}, o); err != nil {
		t.Error(err)
	}
}

// TestUserXattrSuite: layers are whole with marks in user.overlay.*, too.
func TestUserXattrSuite(t *testing.T) {
	if err := Probe(t.TempDir()); err != nil {
		t.Skip(err)
	}
	snapshottest.Run(t, func(t *testing.T, root string) snapshots.Driver {
		d, err := Open(Config{Root: root, UserXattr: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	})
}

// TestUserXattrApplied: a layer laid straight into the upper directory has the
// marks that its mounts look for.
func TestUserXattrApplied(t *testing.T) {
	s := opened(t, Config{UserXattr: true})
	layer := func(name, parent string, change func(root string, lower []string)) {
		mounts, err := s.Create(snapshots.Active, name+"-making", parent, nil)
		if err != nil {
			t.Fatal(err)
		}
		upper, lower := mounts[0].Source, []string(nil)
		for _, option := range mounts[0].Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				upper = dir
			}
			if dirs, ok := strings.CutPrefix(option, "lowerdir="); ok {
				lower = strings.Split(dirs, ":")
			}
		}
		change(upper, lower)
		if err := s.Commit(name, name+"-making", ""); err != nil {
			t.Fatal(err)
		}
	}
	layer("one", "base", func(root string, _ []string) {
		if err := errors.Join(os.Mkdir(root+"/d", 0o755), os.WriteFile(root+"/d/hidden", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	})
	layer("two", "one", func(root string, lower []string) {
		var blob bytes.Buffer
		w := tar.NewWriter(&blob)
		for _, h := range []*tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/.wh..wh..opq", Typeflag: tar.TypeReg}, {Name: "d/new", Typeflag: tar.TypeReg, Mode: 0o644}} {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		if _, err := archive.Apply(context.Background(), root, &blob, archive.Options{Overlay: true, Lower: lower, UserXattr: true}); err != nil {
			t.Fatal(err)
		}
	})
	mounts, err := s.Create(snapshots.View, "view", "two", nil)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root + "/d")
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("%v, %v", entries, err)
	}
	if err := mount.UnmountAll(root); err != nil {
		t.Error(err)
	}
}

func TestUpperDirLabel(t *testing.T) {
	root := t.TempDir()
	s := opened(t, Config{Root: root, UpperDir: true})
	d := s.Driver.(*Driver)
	if got := d.Labels(7, snapshots.Active)[labelUpperDir]; got != root+"/snapshots/7/fs" {
		t.Error(got)
	}
	if got := d.Labels(7, snapshots.Committed); got != nil {
		t.Error(got)
	}
}

// TestQuotaMissing: where no limit can be kept, asking for one is an error that
// says what to do.
func TestQuotaMissing(t *testing.T) {
	root := t.TempDir()
	err := ProbeQuota(root)
	if err == nil {
		t.Skip("this file system has project quotas")
	}
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "prjquota") {
		t.Error(err)
	}
	d, err := Open(Config{Root: root, Quota: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := snapshottest.NewStore(d).Create(snapshots.Active, "limited", "", nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
	if err := d.Create(t.Context(), 1, nil, snapshots.CreateOptions{Kind: snapshots.Active, Layer: true}); err != nil {
		t.Errorf("a layer of an image: %v", err)
	}
	free := opened(t, Config{})
	if _, err := free.Create(snapshots.Active, "limited", "base", map[string]string{labelMaxSize: "1GiB"}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
	if _, err := free.Create(snapshots.Active, "limited", "base", map[string]string{labelMaxSize: "much"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
}
