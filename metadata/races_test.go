package metadata

import (
	"runtime"
	"testing"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

// inOrder has two calls that write reach the committer in that order, before
// either is run.
func (w *world) inOrder(first, second func() error) (one, two error) {
	w.t.Helper()
	free := make(chan struct{})
	held := make(chan error)
	busy := make(chan struct{})
	go func() {
		held <- w.committer.do(&job{ctx: bg, plain: func() { close(busy); <-free }})
	}()
	<-busy
	answers := [2]chan error{make(chan error, 1), make(chan error, 1)}
	for i, call := range []func() error{first, second} {
		go func() { answers[i] <- call() }()
		for len(w.committer.jobs) <= i {
			runtime.Gosched()
		}
	}
	close(free)
	w.must(<-held)
	return <-answers[0], <-answers[1]
}

// TestTargetRemovedMeanwhile: the snapshot that stands in place of the wanted one
// is removed right before it would join the lease. Then it is no answer.
func TestTargetRemovedMeanwhile(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	w.must(second(w.Leases(s).Create(bg, "l", nil)))
	plain, leased := w.snapshotter(s, "native"), w.snapshotter(Scope{"ns", "l"}, "native")
	remove := func(name string) func() error { return func() error { return plain.Remove(bg, name) } }

	w.layer(plain, "target", "", nil)
	one, two := w.inOrder(remove("target"), func() error {
		return second(leased.Prepare(bg, "key", "", map[string]string{labels.SnapshotRef: "target"}))
	})
	w.must(one)
	w.must(two)
	if info, err := plain.Stat(bg, "key"); err != nil || info.Kind != snapshots.Active {
		t.Errorf("%v, %v", info, err)
	}
	w.layer(plain, "target", "", nil)
	one, two = w.inOrder(remove("target"), func() error { return leased.Commit(bg, "target", "key", "", nil) })
	w.must(one)
	w.must(two)
	if info, err := plain.Stat(bg, "target"); err != nil || info.Kind != snapshots.Committed {
		t.Errorf("%v, %v", info, err)
	}
	w.collect()
	if left := w.left(s); len(left) != 2 { // the lease, and what it holds
		t.Errorf("left: %v", left)
	}
}
