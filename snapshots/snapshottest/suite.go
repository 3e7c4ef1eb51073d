package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// Open opens a driver in root, which may not exist yet, and closes it when the
// test ends. It may be called again for the same root.
type Open func(t *testing.T, root string) snapshots.Driver

// Run runs the suite.
func Run(t *testing.T, open Open) { RunExcept(t, open, nil) }

// RunExcept runs the suite but for the tests named in except, with the reason why
// they don't fit the driver, which then has tests of its own.
func RunExcept(t *testing.T, open Open, except map[string]string) {
	for name, test := range map[string]func(*fixture){
		"Layers":       testLayers,
		"EveryKind":    testEveryKind,
		"Root":         testRoot,
		"Views":        testViews,
		"ManyLayers":   testManyLayers,
		"Usage":        testUsage,
		"Rebase":       testRebase,
		"CreateErrors": testCreateErrors,
		"Remove":       testRemove,
		"Mounted":      testRemoveMounted,
		"IDs":          testIDs,
		"AtOnce":       testAtOnce,
	} {
		t.Run(name, func(t *testing.T) {
			if reason := except[name]; reason != "" {
				t.Skip(reason)
			}
			test(newFixture(t, open))
		})
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run("PowerCut/"+fs, func(t *testing.T) { testPowerCut(t, open, fs) })
	}
}

// testLayers builds three layers, each of which changes what is below in
// another way, and looks at each of them from the outside.
func testLayers(f *fixture) {
	t := f.t
	at := filepath.Join
	f.layer("one", "", func(root string) {
		must(t, os.MkdirAll(at(root, "opaque"), 0o755), os.MkdirAll(at(root, "dir"), 0o755),
			os.WriteFile(at(root, "stays"), []byte("1"), 0o644), os.WriteFile(at(root, "goes"), []byte("1"), 0o644),
			os.WriteFile(at(root, "changes"), []byte("1"), 0o644), os.WriteFile(at(root, "owner"), []byte("1"), 0o644),
			os.WriteFile(at(root, "opaque/hidden"), nil, 0o644), os.WriteFile(at(root, "dir/moved"), []byte("1"), 0o644))
	})
	f.layer("two", "one", func(root string) {
		must(t, os.Remove(at(root, "goes")), os.WriteFile(at(root, "changes"), []byte("two"), 0o644),
			os.Lchown(at(root, "owner"), 5, 6), os.RemoveAll(at(root, "opaque")), os.Mkdir(at(root, "opaque"), 0o700),
			os.WriteFile(at(root, "opaque/new"), nil, 0o644))
		// Without redirects the kernel answers EXDEV, and mv(1) copies.
		if err := durable.RenameVolatile("test", at(root, "dir"), at(root, "renamed")); err != nil && !errors.Is(err, unix.EXDEV) {
			t.Fatal(err)
		} else if err != nil {
			must(t, os.Mkdir(at(root, "renamed"), 0o755), os.WriteFile(at(root, "renamed/moved"), []byte("1"), 0o644), os.RemoveAll(at(root, "dir")))
		}
	})
	f.layer("three", "two", func(root string) {
		must(t, os.WriteFile(at(root, "goes"), []byte("again"), 0o644), os.RemoveAll(at(root, "opaque")))
	})
	for name, want := range map[string]map[string]string{
		"one":   {"stays": "1", "goes": "1", "changes": "1", "owner": "1", "opaque/hidden": "", "dir/moved": "1"},
		"two":   {"stays": "1", "changes": "two", "owner": "1", "opaque/new": "", "renamed/moved": "1"},
		"three": {"stays": "1", "goes": "again", "changes": "two", "owner": "1", "renamed/moved": "1"},
	} {
		f.within(f.view("view-"+name, name), func(root string) {
			got := map[string]string{}
			must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				data, err := os.ReadFile(path)
				rel, _ := filepath.Rel(root, path)
				got[rel] = string(data)
				return err
			}))
			for path, text := range want {
				if g, ok := got[path]; !ok || g != text {
					t.Errorf("%s: %s is %q, %v; want %q", name, path, g, ok, text)
				}
				delete(got, path)
			}
			if len(got) > 0 {
				t.Errorf("%s shows also %v", name, got)
			}
			var st unix.Stat_t
			must(t, unix.Lstat(at(root, "owner"), &st))
			if name != "one" && (st.Uid != 5 || st.Gid != 6) {
				t.Errorf("%s: owner is %d:%d", name, st.Uid, st.Gid)
			}
		})
	}
}

// testEveryKind commits files of every kind and compares what is seen on top
// of them, in a view and in a snapshot in which everything is then touched.
func testEveryKind(f *fixture) {
	var want []string
	f.layer("base", "", func(root string) {
		everything(f.t, root)
		want = manifest(f.t, root)
	})
	f.within(f.view("view", "base"), func(root string) { same(f.t, manifest(f.t, root), want) })
	f.within(f.prepare("work", "base"), func(root string) {
		same(f.t, manifest(f.t, root)[1:], want[1:]) // the top's own time may be newer
		var st unix.Stat_t
		must(f.t, unix.Lstat(filepath.Join(root, "sparse"), &st))
		if st.Size != 16<<20 || st.Blocks*512 > 1<<20 {
			f.t.Errorf("sparse: %d bytes in %d blocks", st.Size, st.Blocks)
		}
	})
	// A layer must hold all bytes of a file of which only the owner changed.
	f.layer("owned", "base", func(root string) {
		must(f.t, os.Lchown(filepath.Join(root, "dir/deep/er/file"), 99, 99))
	})
	if err := f.Commit("never", "work", ""); err != nil {
		f.t.Fatal(err)
	}
	f.within(f.prepare("over", "owned"), func(root string) {
		data, err := os.ReadFile(filepath.Join(root, "dir/deep/er/file"))
		if err != nil || string(data) != "deep" {
			f.t.Errorf("%q, %v", data, err)
		}
	})
}

// testRoot checks owner and mode of the top directory, which no layer may lose.
func testRoot(f *fixture) {
	look := func(root string) string {
		var st unix.Stat_t
		must(f.t, unix.Stat(root, &st))
		return fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	}
	f.within(f.prepare("plain", ""), func(root string) {
		if got := look(root); got != "755 0:0" {
			f.t.Errorf("without parents: %s", got)
		}
	})
	f.layer("one", "", func(root string) {
		must(f.t, os.Lchown(root, 1000, 2000), unix.Chmod(root, 0o3751))
	})
	f.layer("two", "one", func(string) {})
	for _, mounts := range [][]mount.Mount{f.view("v1", "one"), f.view("v2", "two"), f.prepare("a", "two")} {
		f.within(mounts, func(root string) {
			if got := look(root); got != "3751 1000:2000" {
				f.t.Errorf("%s", got)
			}
		})
	}
}

func testViews(f *fixture) {
	f.layer("one", "", func(root string) { must(f.t, os.WriteFile(root+"/f", nil, 0o644)) })
	f.layer("two", "one", func(root string) { must(f.t, os.WriteFile(root+"/g", nil, 0o644)) })
	for i, parent := range []string{"", "one", "two"} {
		key := fmt.Sprint("view", i)
		f.view(key, parent)
		mounts, err := f.Mounts(key)
		must(f.t, err)
		f.within(mounts, func(root string) {
			if err := os.WriteFile(root+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
				f.t.Errorf("write into a view of %q: %v", parent, err)
			}
		})
	}
	if _, err := f.Driver.Mounts(1, nil, snapshots.CreateOptions{Kind: snapshots.Committed}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		f.t.Errorf("mounts of a committed snapshot: %v", err)
	}
}

// testManyLayers stacks more layers than a page of mount options has room for.
func testManyLayers(f *fixture) {
	const n = 128
	parent := ""
	for i := range n {
		// Made without mounting and flushing, which would take most of the time.
		name := fmt.Sprint(i)
		mounts := f.prepare(name+"-making", parent)
		if i == 0 || i == n-1 {
			f.within(mounts, func(root string) { must(f.t, os.WriteFile(root+"/"+name, nil, 0o644)) })
		}
		row, err := f.Tree.CheckCommit(name, name+"-making", "")
		must(f.t, err)
		_, err = f.Tree.Commit(name+"-making", "", snapshots.Row{ID: row.ID, Name: name})
		must(f.t, err)
		parent = name
	}
	for _, mounts := range [][]mount.Mount{f.prepare("top", parent), f.view("view", parent)} {
		f.within(mounts, func(root string) {
			if entries, err := os.ReadDir(root); err != nil || len(entries) != 2 {
				f.t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

func testUsage(f *fixture) {
	usage := func(key string) snapshots.Usage {
		f.t.Helper()
		row, err := f.Tree.Stat(key)
		must(f.t, err)
		u, err := f.Driver.Usage(ctx, row.ID)
		must(f.t, err)
		return u
	}
	mounts := f.prepare("work", "")
	empty := usage("work")
	if empty.Inodes != 1 {
		f.t.Errorf("empty: %+v", empty)
	}
	f.within(mounts, func(root string) {
		must(f.t, os.WriteFile(root+"/f", make([]byte, 1<<20), 0o644), os.Link(root+"/f", root+"/g"),
			os.Mkdir(root+"/d", 0o755), os.Link(root+"/f", root+"/d/h"), os.Symlink("f", root+"/l"), sparse(root+"/sparse"))
	})
	must(f.t, f.Commit("one", "work", ""))
	row, err := f.Tree.Stat("one")
	must(f.t, err)
	got := row.Usage
	// One file of 1 MiB under three names, one of 8 KiB with holes, a directory,
	// a link; what directories take depends on the file system.
	if got.Inodes != 5 || got.Size < 1<<20+8<<10 || got.Size > 1<<20+64<<10 {
		f.t.Errorf("%+v", got)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Driver.Usage(cancelled, row.ID); !errors.Is(err, context.Canceled) {
		f.t.Errorf("cancelled: %v", err)
	}
	if _, err := f.Driver.Usage(ctx, 999); !errors.Is(err, os.ErrNotExist) {
		f.t.Errorf("unknown: %v", err)
	}
}

func testRebase(f *fixture) {
	f.layer("base", "", func(root string) { must(f.t, os.WriteFile(root+"/below", nil, 0o644)) })
	f.within(f.prepare("loose", ""), func(root string) { must(f.t, os.WriteFile(root+"/above", nil, 0o644)) })
	err := f.Commit("top", "loose", "base")
	if !f.Tree.Rebase {
		if !errors.Is(err, errdefs.ErrNotImplemented) {
			f.t.Errorf("%v", err)
		}
		return
	}
	must(f.t, err)
	f.within(f.view("view", "top"), func(root string) {
		if entries, err := os.ReadDir(root); err != nil || len(entries) != 2 {
			f.t.Errorf("%v, %v", entries, err)
		}
	})
}

// testCreateErrors checks that a failed Create leaves nothing.
func testCreateErrors(f *fixture) {
	f.prepare("one", "")
	active := snapshots.CreateOptions{Kind: snapshots.Active}
	if err := f.Driver.Create(ctx, 1, nil, active); !errors.Is(err, errdefs.ErrAlreadyExists) {
		f.t.Errorf("a number twice: %v", err)
	}
	if err := f.Driver.Create(ctx, 2, []snapshots.ID{77}, active); !errors.Is(err, os.ErrNotExist) {
		f.t.Errorf("parent missing: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.Driver.Create(cancelled, 3, []snapshots.ID{1}, active); !errors.Is(err, context.Canceled) {
		f.t.Errorf("cancelled: %v", err)
	}
	if err := f.Driver.Flush(ctx, 4); !errors.Is(err, os.ErrNotExist) {
		f.t.Errorf("flush of nothing: %v", err)
	}
	if ids := f.ids(); !slices.Equal(ids, []snapshots.ID{1}) {
		f.t.Errorf("left: %v", ids)
	}
}

func testRemove(f *fixture) {
	f.layer("one", "", func(root string) { everything(f.t, root) })
	f.within(f.prepare("work", "one"), func(root string) { must(f.t, os.RemoveAll(root+"/dir")) })
	must(f.t, f.Remove("work"), f.Remove("one"))
	if ids := f.ids(); len(ids) != 0 {
		f.t.Errorf("left: %v", ids)
	}
	must(f.t, f.Driver.Remove(ctx, 1), f.Driver.Remove(ctx, 99))
}

// testRemoveMounted removes a snapshot into whose directory something else is
// mounted: that must keep its files.
func testRemoveMounted(f *fixture) {
	mounts := f.prepare("work", "")
	other := f.t.TempDir()
	must(f.t, os.WriteFile(other+"/precious", nil, 0o600), os.Mkdir(mounts[0].Source+"/m", 0o755))
	must(f.t, mount.Mount{Type: "bind", Source: other}.Do(mounts[0].Source+"/m"))
	must(f.t, f.Remove("work"))
	if _, err := os.Stat(other + "/precious"); err != nil {
		f.t.Error(err)
	}
}

// testIDs lists what is on disk, and things that a driver has not made.
func testIDs(f *fixture) {
	f.prepare("one", "")
	f.prepare("two", "")
	dir := filepath.Join(f.Driver.Root(), "snapshots")
	for _, name := range []string{"x", "007", "-1", ".hidden", "1.5", "99999999999999999999999", ".new-8", ".old-9"} {
		must(f.t, os.MkdirAll(filepath.Join(dir, name, "sub"), 0o700))
	}
	if ids := f.ids(); !slices.Equal(ids, []snapshots.ID{1, 2, 8, 9}) {
		f.t.Errorf("%v", ids)
	}
	// What a killed process left goes by its number.
	must(f.t, f.Driver.Remove(ctx, 8), f.Driver.Remove(ctx, 9))
	for _, name := range []string{".new-8", ".old-9"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			f.t.Errorf("%s is left", name)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, err := range f.Driver.IDs(cancelled) {
		if !errors.Is(err, context.Canceled) {
			f.t.Errorf("cancelled: %v", err)
		}
	}
}

func testAtOnce(f *fixture) {
	f.layer("one", "", func(root string) { everything(f.t, root) })
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			id := snapshots.ID(100 + i)
			err := f.Driver.Create(ctx, id, []snapshots.ID{1}, snapshots.CreateOptions{Kind: snapshots.Active})
			if err == nil {
				_, err = f.Driver.Usage(ctx, id)
			}
			if err == nil {
				err = f.Driver.Flush(ctx, id)
			}
			if err == nil && i%2 == 0 {
				err = f.Driver.Remove(ctx, id)
			}
			if err != nil {
				f.t.Error(err)
			}
		})
	}
	group.Wait()
	if ids := f.ids(); !slices.Equal(ids, []snapshots.ID{1, 101, 103, 105, 107}) {
		f.t.Errorf("%v", ids)
	}
}
