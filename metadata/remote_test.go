package metadata

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/snapshots"
	plain "github.com/berthd/berth/snapshots/native"
	"github.com/berthd/berth/snapshots/proxy"
	"github.com/berthd/berth/snapshots/proxytest"
)

// farWorld is a world with a snapshotter that is another program, called "far".
type farWorld struct {
	*world
	server *proxytest.Server
	*Snapshots
}

// newFarWorld has calls to that program take no longer than limit.
func newFarWorld(t *testing.T, limit time.Duration) *farWorld {
	t.Helper()
	leak.CheckProcess(t)
	driver, err := plain.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	server := proxytest.Start(t, socket, driver)
	client, err := proxy.Open(proxy.Config{Name: "far", Address: socket, Capabilities: []string{"rebase"}, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	f := &farWorld{server: server}
	f.world = newWorldIn(t, t.TempDir(), func(o *Options) { o.Remotes = map[string]snapshots.Remote{"far": client} })
	t.Cleanup(func() {
		f.close()
		if err := errors.Join(client.Close(), driver.Close()); err != nil {
			t.Error(err)
		}
	})
	f.Snapshots = f.snapshotter(farNS, "far")
	return f
}

// farNS and farOther are two namespaces.
var farNS, farOther = Scope{Namespace: "ns"}, Scope{Namespace: "ns2"}

// reopened is what a new process does.
func (f *farWorld) reopened() {
	f.t.Helper()
	f.restart()
	f.Snapshots = f.snapshotter(farNS, "far")
}

// soon waits until a condition holds.
func (f *farWorld) soon(what string, holds func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			f.t.Fatalf("it never came to this: %s; keys %q", what, f.server.Keys())
		}
	}
}

// must fails the test at the first error.
func (f *farWorld) must(errs ...error) {
	f.t.Helper()
	for _, err := range errs {
		f.world.must(err)
	}
}

// farContainer is a container whose snapshot the program has.
func farContainer(id, key string) *containers.Container {
	c := testContainer(id)
	c.Snapshotter, c.SnapshotKey = "far", key
	return c
}

func (f *farWorld) pendingKeys() []pendingKey {
	keys, err := f.world.pending("far")
	f.must(err)
	return keys
}

// rowKeys are the keys that rows of farNS have at the program, by name.
func (f *farWorld) rowKeys() map[string]string {
	keys := map[string]string{}
	f.must(f.world.View(func(tx *Tx) error {
		for row, err := range snapshotTable.All(tx, farNS.Namespace, path("far", "")) {
			f.must(err)
			keys[row.GetInfo().GetName()] = row.GetRemote()
		}
		return nil
	}))
	return keys
}

func (f *farWorld) nothingPending() bool { return len(f.pendingKeys()) == 0 }

func TestRemoteLife(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	given := map[string]string{"own": "x", labels.SnapshotDiffID: "d", labels.SnapshotRef: "base"}
	mounts, err := f.Prepare(bg, "extract 1", "", given)
	f.must(err)
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		t.Errorf("mounts: %v", mounts)
	}
	keys := f.server.Keys()
	if len(keys) != 1 || !strings.HasPrefix(keys[0], "ns/") || !strings.HasSuffix(keys[0], "/extract 1") || remoteNumber(keys[0]) == 0 {
		t.Fatalf("keys: %q", keys)
	}
	if got := f.server.Labels(keys[0]); len(got) != 2 || got["own"] != "" || got[labels.SnapshotRef] != "base" {
		t.Errorf("it was told of labels %v", got)
	}
	again, err := f.Mounts(bg, "extract 1")
	if err != nil || again[0].Source != mounts[0].Source {
		t.Errorf("mounts: %v, %v", again, err)
	}
	f.must(f.Commit(bg, "base", "extract 1", "", map[string]string{"own": "y"}))
	if info, err := f.Stat(bg, "base"); err != nil || info.Name != "base" || info.Kind != snapshots.Committed || info.Labels["own"] != "y" {
		t.Errorf("%+v, %v", info, err)
	}
	committed := f.server.Keys()
	if len(committed) != 1 || remoteNumber(committed[0]) <= remoteNumber(keys[0]) {
		t.Errorf("after the commit: %q, before %q", committed, keys)
	}
	f.must(second(f.View(bg, "view", "base", nil)))
	if usage, err := f.Usage(bg, "base"); err != nil || usage.Inodes != 1 {
		t.Errorf("usage: %+v, %v", usage, err)
	}
	if err := second(f.Prepare(bg, "base", "", nil)); result(err) != "already_exists" {
		t.Error(err)
	}
	for parent, want := range map[string]string{"none": "not_found", "view": "invalid_argument"} {
		if err := second(f.Prepare(bg, "k", parent, nil)); result(err) != want {
			t.Errorf("prepare on %q: %v", parent, err)
		}
	}
	f.must(f.Remove(bg, "view"))
	f.must(f.Remove(bg, "base"))
	f.soon("all is removed", func() bool { return len(f.server.Keys()) == 0 && f.nothingPending() })
	f.mustBeClean()
	if calls := f.server.Calls(); !slices.Contains(calls, "remove "+committed[0]+" [ns]") || !slices.Contains(calls, "cleanup  []") {
		t.Errorf("calls: %q", calls)
	}
}

// TestRemoteLabels: those of the rows win, those that the program adds show.
func TestRemoteLabels(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.must(second(f.Prepare(bg, "k", "", map[string]string{"own": "x", labels.SnapshotDiffID: "d"})))
	given := map[string]string{"own": "y", labels.SnapshotDiffID: "e", labels.SnapshotParent: "p"}
	info, err := f.Update(bg, snapshots.Info{Name: "k", Labels: given}, "labels."+labels.SnapshotDiffID)
	if err != nil || info.Labels["own"] != "x" || info.Labels[labels.SnapshotDiffID] != "e" || info.Labels[labels.SnapshotParent] != "" {
		t.Errorf("%+v, %v", info, err)
	}
	if got := f.server.Labels(f.server.Keys()[0]); len(got) != 1 || got[labels.SnapshotDiffID] != "e" {
		t.Errorf("it has labels %v", got)
	}
	f.server.Calls()
	if info, err = f.Update(bg, snapshots.Info{Name: "k", Labels: given}, "labels.own"); err != nil || info.Labels["own"] != "y" {
		t.Errorf("%+v, %v", info, err)
	}
	for _, call := range f.server.Calls() {
		if strings.HasPrefix(call, "update") {
			t.Errorf("a label that is not its business: %q", call)
		}
	}
	f.server.Offer("layer")
	if err := second(f.Prepare(bg, "k2", "", map[string]string{labels.SnapshotRef: "layer"})); result(err) != "already_exists" {
		t.Fatal(err)
	}
	for filter, want := range map[string]int{"": 2, "labels.remote==yes": 1, "labels.own==y": 1, "kind==committed": 1, "name==k": 1} {
		n := 0
		for info, err := range f.All(bg, filter) {
			f.must(err)
			if n++; info.Name == "layer" && info.Labels["remote"] != "yes" {
				t.Errorf("%+v", info)
			}
		}
		if n != want {
			t.Errorf("filter %q: %d, want %d", filter, n, want)
		}
	}
}

// TestRemoteHandOver: a layer that the program has by itself becomes a snapshot
// of each namespace that wants it, and goes when none has it any more.
func TestRemoteHandOver(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.server.Offer("one")
	f.server.Offer("two")
	f.must(second(f.Leases(farNS).Create(bg, "lease", nil)))
	for _, s := range []Scope{{"ns", "lease"}, farOther} {
		sn := f.snapshotter(s, "far")
		for _, l := range []struct{ target, parent string }{{"one", ""}, {"two", "one"}} {
			err := second(sn.Prepare(bg, "extract "+l.target, l.parent, map[string]string{labels.SnapshotRef: l.target, "own": "x"}))
			if result(err) != "already_exists" {
				t.Fatalf("%s in %s: %v", l.target, s.Namespace, err)
			}
			info, err := sn.Stat(bg, l.target)
			if err != nil || info.Kind != snapshots.Committed || info.Parent != l.parent || info.Labels["remote"] != "yes" || info.Labels["own"] != "x" {
				t.Fatalf("%+v, %v", info, err)
			}
		}
		f.must(second(sn.Prepare(bg, "container", "two", nil)))
	}
	if keys := f.server.Keys(); len(keys) != 4 || !slices.Contains(keys, "one") || !slices.Contains(keys, "two") {
		t.Errorf("keys: %q", keys)
	}
	held, err := f.Leases(farNS).ListResources(bg, "lease")
	if err != nil || len(held) != 3 {
		t.Errorf("the lease holds %v, %v", held, err)
	}
	f.collect() // takes all of farOther
	f.soon("what only farOther had is removed", func() bool { return len(f.server.Keys()) == 3 && f.nothingPending() })
	f.mustBeClean()
	f.must(f.Leases(farNS).Delete(bg, "lease"))
	f.collect()
	f.soon("all is removed", func() bool { return len(f.server.Keys()) == 0 && f.nothingPending() })
	f.mustBeClean()
}

// TestRemoteHandOverOfNothing: a program that says that a layer is there and has
// none is caught out.
func TestRemoteHandOverOfNothing(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.server.Offer("one")
	f.must(second(f.Prepare(bg, "base-making", "", nil)), f.Commit(bg, "base", "base-making", "", nil))
	if err := second(f.Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "one"})); result(err) != "already_exists" {
		t.Fatal(err)
	}
	// On another parent it has no such layer.
	f.must(f.Remove(bg, "one"))
	f.soon("it is removed", f.nothingPending)
	if err := second(f.Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "one"})); result(err) != "already_exists" {
		t.Fatal(err)
	}
	err := second(f.Prepare(bg, "k", "base", map[string]string{labels.SnapshotRef: "one"}))
	if result(err) != "already_exists" { // that of the namespace
		t.Error(err)
	}
	err = second(f.snapshotter(farOther, "far").Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "other"}))
	f.must(err)
	f.server.Offer("lost")
	f.server.Lie("lost")
	if err := second(f.Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "lost"})); result(err) != "not_found" {
		t.Error(err)
	}
	if _, err := f.Stat(bg, "k"); result(err) != "not_found" {
		t.Error(err)
	}
}

// TestRemoteHangs: who calls a program that hangs is told so after its time;
// nobody else waits, collections go on, and when it comes back nothing is left
// of what it was asked.
func TestRemoteHangs(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%v", late), func(t *testing.T) { testRemoteHangs(t, late) })
	}
}

func testRemoteHangs(t *testing.T, late bool) {
	f := newFarWorld(t, 3*time.Second)
	f.remotes["far"].remote.doubt = 2 * time.Second
	f.must(second(f.Prepare(bg, "stays", "", nil)))
	f.must(second(f.Prepare(bg, "goes", "", nil)))
	f.must(second(f.Containers(farNS).Create(bg, farContainer("c", "stays"))))
	f.server.Hang(late)
	failed := make(chan error, 3)
	go func() { failed <- second(f.Prepare(bg, "new", "", nil)) }()
	go func() { failed <- second(f.Stat(bg, "stays")) }()
	go func() { failed <- f.Commit(bg, "name", "goes", "", nil) }()

	near := f.snapshotter(farNS, "native")
	f.must(second(near.Prepare(bg, "k", "", nil)))
	f.must(near.Remove(bg, "k"))
	f.must(f.Remove(bg, "goes"), second(f.Leases(farNS).Create(bg, "l", nil)))
	f.collect()
	f.settled()
	if len(failed) > 0 {
		t.Error("others took longer than those who wait for the program")
	}
	for range 3 {
		if err := <-failed; result(err) != "unavailable" && result(err) != "not_found" {
			t.Errorf("a call that hung: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := f.Stat(ctx, "stays"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	f.server.Release()
	f.soon("what was asked meanwhile is gone", func() bool {
		keys := f.server.Keys()
		return f.nothingPending() && len(keys) == 1 && strings.HasSuffix(keys[0], "/stays")
	})
	f.must(second(f.Stat(bg, "stays")))
	f.mustBeClean()
}

// TestRemoteDies: a program that is not there fails its callers at once, and is
// used again as soon as it is back.
func TestRemoteDies(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.must(second(f.Prepare(bg, "a", "", nil)), second(f.Prepare(bg, "b", "", nil)))
	f.server.Die()
	for range 3 {
		start := time.Now()
		if _, err := f.Stat(bg, "a"); result(err) != "unavailable" || time.Since(start) > time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	}
	if err := second(f.Prepare(bg, "c", "", nil)); result(err) != "unavailable" {
		t.Error(err)
	}
	f.must(f.Remove(bg, "a")) // the row; the rest is for later
	f.collect()               // takes the row of b
	if _, err := f.Stat(bg, "a"); result(err) != "not_found" {
		t.Error(err)
	}
	f.server.Revive()
	f.must(second(f.Prepare(bg, "again", "", nil)))
	f.soon("all but the new one is gone", func() bool { return len(f.server.Keys()) == 1 })
	f.mustBeClean()
}

// TestRemoteRestart: what is to go is known to the next daemon, and what another
// program's user has there is nobody's business.
func TestRemoteRestart(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.must(second(f.Prepare(bg, "a", "", nil)), second(f.Prepare(bg, "b", "", nil)))
	f.server.Offer("foreign")
	other := f.snapshotter(farOther, "far")
	if err := second(other.Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "foreign"})); result(err) != "already_exists" {
		t.Fatal(err)
	}
	// A row that this daemon loses, as if the snapshot were another daemon's.
	f.must(f.world.Update(bg, func(tx *Tx) error { return snapshotTable.Delete(tx, "ns2", path("far", "foreign")) }))
	f.server.Die()
	f.must(f.Remove(bg, "a"))
	f.reopened()
	f.server.Revive()
	f.remotes["far"].remote.signal()
	f.soon("a is removed", func() bool { return len(f.server.Keys()) == 2 })
	if keys := f.server.Keys(); !slices.Contains(keys, "foreign") {
		t.Errorf("keys: %q", keys)
	}
	f.must(second(f.Stat(bg, "b")))
}

// TestRemoteRemovedUnderARow: a daemon that died between the removal of a commit
// that was cut off and that of the row which it had consumed leaves no such row.
func TestRemoteRemovedUnderARow(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.must(second(f.Prepare(bg, "making", "", nil)), second(f.Prepare(bg, "stays", "", nil)))
	f.server.Die()
	keys := f.rowKeys()
	r := f.remotes["far"].remote
	f.must(r.expect(bg, "ns", "ns/1/committed", keys["making"]), r.expect(bg, "ns", "ns/2/not committed", keys["stays"]))
	f.server.Lose(keys["making"])
	f.reopened()
	f.server.Revive()
	f.remotes["far"].remote.signal()
	// What may yet come, for all that this daemon knows, stays on the list.
	f.soon("the row is gone", func() bool { return f.rowKeys()["making"] == "" && len(f.pendingKeys()) == 2 })
	f.must(second(f.Stat(bg, "stays")))
	f.mustBeClean()
}

// TestRemoteCheck tells what the program has lost.
func TestRemoteCheck(t *testing.T) {
	f := newFarWorld(t, 10*time.Second)
	f.must(second(f.Prepare(bg, "a", "", nil)))
	f.server.Lose(f.server.Keys()[0])
	problems := 0
	for p := range f.Check(bg, CheckOptions{}) {
		if problems++; p.Kind != "snapshot" || p.Object != "a" || !strings.Contains(p.Text, "has lost it") {
			t.Errorf("%v", p)
		}
	}
	if problems != 1 {
		t.Errorf("%d problems", problems)
	}
	if _, err := f.Stat(bg, "a"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	f.must(f.Remove(bg, "a"))
	f.soon("it is forgotten", f.nothingPending)
	f.server.Die()
	f.must(second(f.world.Containers(farNS).Create(bg, farContainer("c", "x"))))
	f.mustBeClean() // nothing is wanted of it
}
