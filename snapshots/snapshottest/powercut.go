package snapshottest

import (
	"path/filepath"
	"testing"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/powercut"
	"github.com/berthd/berth/snapshots"
)

// testPowerCut stops the machine right after each answer: every snapshot that
// was prepared by then can be mounted, and every one that was committed has all
// that was written into it. What has to be flushed for that is not the same on
// every file system.
func testPowerCut(t *testing.T, open Open, fs string) {
	leak.Check(t)
	disk := powercut.NewOn(t, fs)
	f := &fixture{NewStore(open(t, filepath.Join(disk.Dir, "root"))), t}
	f.prepare("work", "")
	f.afterReboot(disk, open, "work", manifest(t, t.TempDir())[1:])

	mounts, err := f.Mounts("work")
	must(t, err)
	var want []string
	f.within(mounts, func(root string) {
		everything(t, root)
		want = manifest(t, root)[1:]
	})
	must(t, f.Commit("base", "work", ""))
	f.view("view", "base")
	f.afterReboot(disk, open, "view", want)
	f.prepare("next", "base")
	f.afterReboot(disk, open, "next", want)
}

// afterReboot mounts key on the disk that a power cut would leave now, and
// compares what is there. The rows are those of before: metadata flushes its
// own.
func (f *fixture) afterReboot(disk *powercut.Disk, open Open, key string, want []string) {
	f.t.Helper()
	row, parents, err := f.Tree.Mountable(key)
	must(f.t, err)
	d := open(f.t, filepath.Join(disk.Cut(f.t).Dir, "root"))
	var mounts []mount.Mount
	mounts, err = d.Mounts(row.ID, parents, snapshots.CreateOptions{Kind: row.Kind})
	must(f.t, err)
	f.within(mounts, func(root string) { same(f.t, manifest(f.t, root)[1:], want) })
}
