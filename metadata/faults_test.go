//go:build faults

package metadata

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/fault"
)

// operation is something made of durable steps. Its setup makes what it needs.
type operation struct {
	name  string
	setup func(w *world)
	do    func(w *world) error
	// again are the answers of a second try that are right, the first having
	// failed or not.
	again []string
	// points are some that it must have, so that a test of none is noticed.
	points []string
}

var ns = Scope{Namespace: "ns"}

var leased = Scope{"ns", "lease"}

func lease(w *world) { w.must(second(w.Leases(ns).Create(bg, "lease", nil))) }

func native(w *world, s Scope) *Snapshots { return w.snapshotter(s, "native") }

func contentOperations() []operation {
	return []operation{
		{
			name: "content commit", setup: lease,
			do:     func(w *world) error { return second(writeBlob(w.DB, leased, "data", nil)) },
			again:  []string{"ok", "already_exists"},
			points: []string{"content.commit.rename", "content.commit.sync", "content.commit.syncdir", commitPoint},
		},
		{
			name:  "content open",
			setup: lease,
			do: func(w *world) error {
				writer, err := w.Blobs(leased).Writer(bg, "ref", content.Expect{})
				if err != nil {
					return err
				}
				return writer.Close()
			},
			again: []string{"ok"}, points: []string{commitPoint},
		},
		{
			name: "content abort",
			setup: func(w *world) {
				writer, err := w.Blobs(ns).Writer(bg, "ref", content.Expect{})
				w.must(err)
				w.must(writer.Close())
			},
			do:    func(w *world) error { return w.Blobs(ns).Abort(bg, "ref") },
			again: []string{"ok", "not_found"}, points: []string{commitPoint},
		},
	}
}

func snapshotOperations() []operation {
	return []operation{
		{
			name: "snapshot prepare", setup: func(w *world) { lease(w); w.layer(native(w, ns), "base", "", nil) },
			do:     func(w *world) error { return second(native(w, leased).Prepare(bg, "key", "base", nil)) },
			again:  []string{"ok", "already_exists"},
			points: []string{"testdriver.create.mkdir", "testdriver.create.syncdir", commitPoint},
		},
		{
			name: "snapshot commit", setup: func(w *world) { lease(w); w.must(second(native(w, leased).Prepare(bg, "key", "", nil))) },
			do: func(w *world) error {
				err := native(w, leased).Commit(bg, "name", "key", "", nil)
				if result(err) == "not_found" {
					return second(native(w, ns).Stat(bg, "name")) // the first try made it
				}
				return err
			},
			again: []string{"ok"}, points: []string{"testdriver.flush.syncdir", commitPoint},
		},
		{
			name: "snapshot remove", setup: func(w *world) { w.must(second(native(w, ns).Prepare(bg, "key", "", nil))) },
			do: func(w *world) error {
				err := native(w, ns).Remove(bg, "key")
				w.settledOrFailed()
				return err
			},
			again: []string{"ok", "not_found"}, points: []string{"testdriver.remove.syncdir", commitPoint},
		},
	}
}

func otherOperations() []operation {
	return []operation{
		{
			name: "container create", setup: func(*world) {},
			do:    func(w *world) error { return second(w.Containers(ns).Create(bg, testContainer("c"))) },
			again: []string{"ok", "already_exists"}, points: []string{commitPoint},
		},
		{
			name: "collect",
			setup: func(w *world) {
				w.layer(native(w, ns), "base", "", nil)
				w.layer(native(w, ns), "top", "base", nil)
				w.blob(ns, "garbage", nil)
				w.blob(Scope{Namespace: "other"}, "garbage", nil)
			},
			do: func(w *world) error {
				_, err := w.Collect(bg)
				w.settledOrFailed()
				return err
			},
			again: []string{"ok"}, points: []string{commitPoint},
		},
	}
}

// settledOrFailed waits until the remover has tried all that it was given.
func (w *world) settledOrFailed() {
	for {
		waiting := len(w.remover.queue)
		w.remover.mu.Lock()
		failed := len(w.remover.failed)
		w.remover.mu.Unlock()
		d := w.drivers["native"]
		d.mu.Lock()
		leaving := len(d.leaving)
		d.mu.Unlock()
		if waiting == 0 && leaving <= failed {
			return
		}
	}
}

// TestTwoFates fails each durable step of each operation in both ways. A new
// process then finds everything in order, and the operation succeeds.
func TestTwoFates(t *testing.T) {
	for _, op := range slices.Concat(contentOperations(), snapshotOperations(), otherOperations()) {
		w := newWorld(t)
		op.setup(w)
		fault.Reset()
		w.must(op.do(w))
		points := fault.Seen()
		for _, want := range op.points {
			if !slices.Contains(points, want) {
				t.Errorf("%s: no point %s among %v", op.name, want, points)
			}
		}
		for _, point := range points {
			for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
				t.Run(fmt.Sprintf("%s/%s/%s", op.name, point, fate), func(t *testing.T) {
					w := newWorld(t)
					op.setup(w)
					disarm := fault.Set(point, fate)
					err := op.do(w)
					disarm()
					if err != nil && !errors.Is(err, fault.ErrInjected) {
						t.Logf("answered %v", err)
					}
					w.mustBeClean() // the process goes on
					w.restart()
					w.settled()
					w.mustBeClean()
					if err := op.do(w); !slices.Contains(op.again, result(err)) {
						t.Errorf("second try: %v", err)
					}
				})
			}
		}
	}
}

// TestCommitTwiceOnOneWriter: a writer whose commit failed can be asked again.
func TestCommitTwiceOnOneWriter(t *testing.T) {
	for _, point := range []string{commitPoint, "content.commit.sync", "content.commit.rename", "content.commit.syncdir"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(fmt.Sprintf("%s/%s", point, fate), func(t *testing.T) {
				w := newWorld(t)
				writer, err := w.Blobs(ns).Writer(bg, "ref", content.Expect{})
				w.must(err)
				w.must(second(writer.Write([]byte("data"))))
				disarm := fault.Set(point, fate)
				if err := writer.Commit(bg, 4, "", nil); !errors.Is(err, fault.ErrInjected) {
					t.Error(err)
				}
				disarm()
				status, err := writer.Status()
				if err == nil && status.Offset == 0 {
					w.must(second(writer.Write([]byte("data")))) // a failed flush takes the bytes
				}
				if err := writer.Commit(bg, 4, "", nil); err != nil && result(err) != "already_exists" {
					t.Error(err)
				}
				w.must(writer.Close())
				w.must(second(w.Blobs(ns).Info(bg, digest.FromString("data"))))
			})
		}
	}
}

// TestUncertainCommitIsSettled: the transaction took effect, and its caller was
// told that it failed. Nothing that a row stands for may be undone.
func TestUncertainCommitIsSettled(t *testing.T) {
	w := newWorld(t)
	native := w.snapshotter(ns, "native")
	disarm := fault.Set(commitPoint, fault.FailAfter)
	_, err := native.Prepare(bg, "key", "", nil)
	disarm()
	if !errors.Is(err, fault.ErrInjected) {
		t.Error(err)
	}
	mounts, err := native.Mounts(bg, "key")
	if err != nil || w.directories() != 1 {
		t.Errorf("%v, %v, %d directories", mounts, err, w.directories())
	}
	disarm = fault.Set(commitPoint, fault.FailAfter)
	err = native.Remove(bg, "key")
	disarm()
	w.settled()
	if !errors.Is(err, fault.ErrInjected) || w.directories() != 0 {
		t.Errorf("%v, %d directories", err, w.directories())
	}
}
