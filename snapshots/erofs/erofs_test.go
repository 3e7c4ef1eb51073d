package erofs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

var options = []string{"index=off"}

// need skips a test on a machine that can't.
func need(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := Probe(t.TempDir(), options); err != nil && os.Getenv("BERTH_VM") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
}

func open(t *testing.T, root string) snapshots.Driver {
	t.Helper()
	d, err := Open(root, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSuite(t *testing.T) {
	need(t)
	snapshottest.RunExcept(t, open, map[string]string{
		"ManyLayers": "it commits without a flush, so without an image; TestManyLayers does not",
		"Usage":      "it measures directories, not images; TestUsage does",
	})
}

// TestLayersAreImages: a committed layer is an image that can't be written, its
// directory is gone once it is used, and what stands on it outlives the driver.
func TestLayersAreImages(t *testing.T) {
	need(t)
	leak.Check(t)
	root := t.TempDir()
	d, err := Open(root, options)
	if err != nil {
		t.Fatal(err)
	}
	s := snapshottest.NewStore(d)
	mounts, err := s.Create(snapshots.Active, "making", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mounts[0].Source+"/file", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit("base", "making", ""); err != nil {
		t.Fatal(err)
	}
	if mounts, err = s.Create(snapshots.Active, "work", "base", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/snapshots/1/fs"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the layer: %v", err)
	}
	if err := os.WriteFile(root+"/snapshots/1/layer/file", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into a layer: %v", err)
	}
	at := t.TempDir()
	if err := mount.All(mounts, at); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if points, err := mount.Below(root); err != nil || len(points) != 0 {
		t.Errorf("mounted after the end: %q, %v", points, err)
	}
	if data, err := os.ReadFile(at + "/file"); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	if err := mount.UnmountAll(at); err != nil {
		t.Fatal(err)
	}
	// The next one mounts it anew; with the mount there, it takes that one.
	for range 2 {
		next, err := Open(root, options)
		if err != nil {
			t.Fatal(err)
		}
		again, err := next.Mounts(2, []snapshots.ID{1}, snapshots.CreateOptions{Kind: snapshots.Active})
		if err != nil || !strings.Contains(strings.Join(again[0].Options, " "), "/snapshots/1/layer") {
			t.Errorf("%v, %v", again, err)
		}
		if points, err := mount.Below(root); err != nil || len(points) != 1 {
			t.Errorf("mounted: %q, %v", points, err)
		}
		next.dirs.Close()
	}
	if err := mount.UnmountAll(root + "/snapshots/1/layer"); err != nil {
		t.Error(err)
	}
	// Where the kernel needs a loop device for a file (before 6.12), that goes, too.
	for deadline := time.Now().Add(10 * time.Second); ; {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		files = slices.DeleteFunc(files, func(file string) bool {
			data, err := os.ReadFile(file)
			return err != nil || !strings.Contains(string(data), root)
		})
		if len(files) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("loop devices are left: %q", files)
		}
	}
}

func TestManyLayers(t *testing.T) {
	need(t)
	leak.Check(t)
	s := snapshottest.NewStore(open(t, t.TempDir()))
	const n = 60 // more than a page of mount options
	parent := ""
	for i := range n {
		name := fmt.Sprint(i)
		mounts, err := s.Create(snapshots.Active, name+"-making", parent, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := mounts[0].Source
		for _, option := range mounts[0].Options {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				dir = upper
			}
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o644), s.Commit(name, name+"-making", "")); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	mounts, err := s.Create(snapshots.View, "view", parent, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := mount.All(mounts, at); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(at); err != nil || len(entries) != n {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if err := mount.UnmountAll(at); err != nil {
		t.Error(err)
	}
}

// TestUsage: a writable layer takes what its directory takes, a committed one what
// its image takes.
func TestUsage(t *testing.T) {
	need(t)
	leak.Check(t)
	root := t.TempDir()
	s := snapshottest.NewStore(open(t, root))
	mounts, err := s.Create(snapshots.Active, "work", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1<<20)
	rand.Read(data)
	if err := errors.Join(os.WriteFile(mounts[0].Source+"/f", data, 0o644), os.Link(mounts[0].Source+"/f", mounts[0].Source+"/g")); err != nil {
		t.Fatal(err)
	}
	before, err := s.Driver.Usage(context.Background(), 1)
	if err != nil || before.Inodes != 2 || before.Size < 1<<20 {
		t.Errorf("%+v, %v", before, err)
	}
	if err := s.Commit("one", "work", ""); err != nil {
		t.Fatal(err)
	}
	row, err := s.Tree.Stat("one")
	if err != nil || row.Usage.Inodes != 1 || row.Usage.Size < 1<<20 || row.Usage.Size > 1<<20+256<<10 {
		t.Errorf("%+v, %v", row, err)
	}
}

// TestFlushFails: a layer that no image can be made of is an error that says why,
// and stays as it was.
func TestFlushFails(t *testing.T) {
	need(t)
	leak.Check(t)
	dir := t.TempDir()
	d := open(t, t.TempDir())
	ctx := context.Background()
	if err := d.Create(ctx, 1, nil, snapshots.CreateOptions{Kind: snapshots.Active}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, mkfs), []byte("#!/bin/sh\necho no room >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+path)
	if err := d.Flush(ctx, 1); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	if err := d.(*Driver).Intact(ctx, 1, snapshots.Committed); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	t.Setenv("PATH", path)
	if err := d.Flush(ctx, 1); err != nil {
		t.Error(err)
	}
}

func TestProbeSaysWhy(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Probe(t.TempDir(), nil); !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "erofs-utils") {
		t.Error(err)
	}
}
