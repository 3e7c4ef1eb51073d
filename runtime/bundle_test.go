package runtime

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/runtime/record"
)

func testIntent(id string) record.Intent {
	return record.Intent{Version: record.Version, Namespace: testNS, ID: id, BootID: "boot"}
}

func TestBundle(t *testing.T) {
	b := bundles(t.TempDir())
	spec := "{ \"as\":  \"given\"}\n"
	if err := b.make(testIntent("a"), []byte(spec)); err != nil {
		t.Fatal(err)
	}
	dir := b.path(testNS, "a")
	if got, err := os.ReadFile(filepath.Join(dir, record.ConfigFile)); err != nil || string(got) != spec {
		t.Errorf("config.json: %q, %v", got, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("bundle: %v, %v", info.Mode(), err)
	}
	var in record.Intent
	if err := record.Read(dir, record.IntentFile, &in); err != nil || in.ID != "a" {
		t.Error(in, err)
	}
	if err := b.make(testIntent("a"), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(string(b), testNS, ".*-*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	for _, there := range []bool{true, false} { // the second time there is nothing to do
		gone, err := b.remove(testNS, "a")
		if err != nil || (gone != "") != there {
			t.Fatal(gone, err)
		}
		if there {
			sweep(slog.Default(), gone)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(string(b), testNS)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// mountTmpfs mounts a file system with a file in it.
func mountTmpfs(t *testing.T, dir string) (file string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	file = filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestRemoveTree stops at mounts, those of the same file system included.
func TestRemoveTree(t *testing.T) {
	leak.Check(t)
	dir := filepath.Join(t.TempDir(), "d")
	file := mountTmpfs(t, filepath.Join(dir, "x", "y"))
	err := removeTree(dir)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "x/y: something is mounted there") {
		t.Errorf("tmpfs: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(filepath.Dir(file), 0); err != nil {
		t.Fatal(err)
	}

	home := t.TempDir()
	precious := filepath.Join(home, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "home")
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(home, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("bind: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(home, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(dir); err != nil {
		t.Errorf("gone already: %v", err)
	}
}

// TestRemoveMounted unmounts the root file system, and what is mounted in it,
// before the bundle goes.
func TestRemoveMounted(t *testing.T) {
	leak.Check(t)
	b := bundles(t.TempDir())
	if err := b.make(testIntent("a"), nil); err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(b.path(testNS, "a"), record.RootfsDir)
	mountTmpfs(t, rootfs)
	mountTmpfs(t, filepath.Join(rootfs, "proc"))
	gone, err := b.remove(testNS, "a")
	if err != nil {
		t.Fatal(err)
	}
	sweep(slog.Default(), gone)
	if _, err := os.Stat(b.path(testNS, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestList(t *testing.T) {
	b := bundles(t.TempDir())
	for _, path := range []string{"ns/a", "ns/.new-b-1", "ns/.c-gone-1", "other/d", "ns/bad..name", "bad name/e"} {
		if err := os.MkdirAll(filepath.Join(string(b), path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(string(b), "ns", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found, leftovers, err := b.list(slog.Default())
	if err != nil || len(found) != 2 || found[0] != (name{"ns", "a"}) || found[1] != (name{"other", "d"}) || len(leftovers) != 2 {
		t.Fatal(found, leftovers, err)
	}
	sweep(slog.Default(), leftovers...)
	for path, there := range map[string]bool{"ns/.new-b-1": false, "ns/.c-gone-1": false, "ns/bad..name": true, "ns/file": true} {
		if _, err := os.Lstat(filepath.Join(string(b), path)); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLane(t *testing.T) {
	l := newLane()
	var wg sync.WaitGroup
	n := 0
	for range 50 {
		wg.Go(func() {
			if err := l.enter(t.Context()); err != nil {
				t.Error(err)
			}
			n++ // the race detector watches
			l.leave()
		})
	}
	wg.Wait()
	if n != 50 {
		t.Fatal(n)
	}
	if err := l.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := l.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestSocketPath(t *testing.T) {
	if got, want := socketPath("/run/berth", "default", "redis"), "/run/berth/s/c7c94c8dbcb35be9bcc6a79dc4d0dd32"; len(got) != len(want) {
		t.Error(got)
	}
	if socketPath("/x", "a", "b") == socketPath("/x", "a", "c") {
		t.Error("two tasks share a socket")
	}
	c := Config{Root: "/r", State: "/" + strings.Repeat("x", 80), Shim: "/s"}
	if err := c.setDefaults(); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	for _, c := range []Config{{}, {Root: "r", State: "/s", Shim: "/s"}, {Root: "/r", State: "/s", Shim: "s"}} {
		if err := c.setDefaults(); err == nil {
			t.Errorf("%+v is fine", c)
		}
	}
}

// TestSeen reads back what was noted of published events.
func TestSeen(t *testing.T) {
	b := bundles(t.TempDir())
	if err := b.make(testIntent("a"), nil); err != nil {
		t.Fatal(err)
	}
	table := &Tasks{cfg: Config{Log: slog.Default()}, bundles: b, ctx: t.Context()}
	k := table.newTask(testNS, "a", connected)
	table.markPublished(k, "", 10)
	table.markPublished(k, "e1", 11)
	table.markPublished(k, "e1", 12)
	table.markPublished(k, deleteMark, 10)
	got := readSeen(k.dir)
	if len(got.exits) != 2 || got.exits[""] != 10 || got.exits["e1"] != 12 || !got.deleted {
		t.Fatal(got)
	}
	// Marks of execs that are gone don't pile up.
	for i := range 10 * seenMax {
		table.markPublished(k, "x"+strings.Repeat("y", i%60)+string(rune('a'+i%26)), i)
	}
	if files, _ := os.ReadDir(filepath.Join(k.dir, record.SeenDir)); len(k.seen.exits) > seenMax+1 || len(files) > seenMax+1 {
		t.Fatal(len(k.seen.exits), len(files))
	}
}

func TestBygone(t *testing.T) {
	var b bygone
	b.add("ns", "a", 1, seen{exits: map[string]int{"": 1, "e": 2}, deleted: true})
	for _, c := range []struct {
		id, mark string
		pid      int
		want     bool
	}{
		{"a", "", 1, true}, {"a", "", 9, false}, {"a", "e", 2, true}, {"a", "e", 3, false}, {"a", "f", 2, false},
		{"a", deleteMark, 1, true}, {"a", deleteMark, 2, false}, {"b", "", 1, false},
	} {
		if got := b.published("ns", c.id, c.mark, c.pid); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
	for i := range 2 * bygoneMax {
		b.add("ns", "b", i, seen{})
	}
	if b.published("ns", "a", "", 1) {
		t.Error("remembered for ever")
	}
}

func TestInCgroupOf(t *testing.T) {
	for line, want := range map[string]bool{
		"0::/default/r1": true, "1:cpu:/default/r1/sub": true, "0::/system.slice/berth-r1.scope": true, "0::/r1.scope": true,
		"0::/": false, "0::/default/r11": false, "0::/default/xr1": false, "0::/r1.slice": false, "": false,
	} {
		if got := inCgroupOf(line, "r1"); got != want {
			t.Errorf("%q: %t", line, got)
		}
	}
}

// TestRemoveGone has the removal of a bundle be cut off: the next daemon does not
// take the half that is left for a task of which it has something to tell.
func TestRemoveGone(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	path := filepath.Join(m.dir, bundlesDir, testNS, ".a"+goneSuffix+"1")
	busy := filepath.Join(path, record.ExecsDir)
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, r := range map[string]any{
		record.IntentFile:  record.Intent{Version: record.Version, Namespace: testNS, ID: "a", BootID: m.bootID},
		record.StartedFile: record.Started{Version: record.Version, PID: 12},
	} {
		if err := record.Write("test", path, file, r); err != nil {
			t.Fatal(err)
		}
	}
	if late := d.findLate([]string{path}); len(late) != 1 {
		t.Fatalf("of a whole one there is to be told: %+v", late)
	}
	if err := unix.Mount("tmpfs", busy, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeGone(path); err == nil {
		t.Error("removed over a mount")
	}
	if late := d.findLate([]string{path}); len(late) != 0 {
		t.Errorf("of half a one there is to be told: %+v", late)
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may be repeated
		if err := removeGone(path); err != nil {
			t.Error(err)
		}
	}
}
