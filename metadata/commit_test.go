package metadata

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/leases/v1"
)

// gate keeps the committer busy until it is opened, so that what is queued
// meanwhile shares a transaction.
func gate(w *world) (open func()) {
	entered, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- w.committer.do(&job{ctx: bg, plain: func() { close(entered); <-leave }})
	}()
	<-entered
	return func() {
		close(leave)
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// queued waits until n functions wait for the committer.
func (w *world) queued(n int) {
	for len(w.committer.jobs) != n {
		runtime.Gosched()
	}
}

// queue hands functions to the committer in their order, and gives their
// answers once the gate is open.
func queue(w *world, fns ...func(*Tx) error) []error {
	open := gate(w)
	errs := make([]error, len(fns))
	var group sync.WaitGroup
	for i, fn := range fns {
		group.Go(func() { errs[i] = w.Update(bg, fn) })
		w.queued(i + 1)
	}
	open()
	group.Wait()
	return errs
}

func addLease(id string) func(*Tx) error {
	return func(tx *Tx) error {
		tx.publish("ns", "/lease", &leases.Lease{Id: id})
		return leaseTable.Create(tx, "ns", id, &leases.Lease{Id: id})
	}
}

func leaseIDs(w *world) []string {
	w.t.Helper()
	all, err := w.Leases(Scope{Namespace: "ns"}).List(bg)
	w.must(err)
	return keys(all, (*leases.Lease).GetId)
}

func TestBatchSharesOneTransaction(t *testing.T) {
	w := newWorld(t)
	var ids []int
	var fns []func(*Tx) error
	for i := range 5 {
		fns = append(fns, func(tx *Tx) error {
			ids = append(ids, tx.bolt.ID())
			return addLease(fmt.Sprint(i))(tx)
		})
	}
	for _, err := range queue(w, fns...) {
		w.must(err)
	}
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("transactions %v", ids)
		}
	}
	if diff := cmp.Diff([]string{"ns /lease 0", "ns /lease 1", "ns /lease 2", "ns /lease 3", "ns /lease 4"}, w.events.take()); diff != "" {
		t.Error(diff)
	}
}

// TestFailuresDontSpread has functions fail in each way among others that
// don't.
func TestFailuresDontSpread(t *testing.T) {
	w := newWorld(t)
	w.must(w.Update(bg, addLease("there")))
	w.events.take()
	broken := errors.New("broken")
	errs := queue(w,
		addLease("a"),
		addLease("there"), // fails without a write
		func(tx *Tx) error { return errors.Join(addLease("b")(tx), broken) },
		addLease("c"),
		func(tx *Tx) error { _ = addLease("d")(tx); panic("help") },
		func(tx *Tx) error { panic("before any write") },
		func(tx *Tx) error {
			if leaseTable.Has(tx, "ns", "b") || leaseTable.Has(tx, "ns", "d") {
				return errors.New("it sees what failed")
			}
			return addLease("e")(tx)
		},
	)
	for i, want := range []string{"", "already exists", "broken", "", "panic: help", "panic: before", ""} {
		if err := errs[i]; (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", i, err, want)
		}
	}
	if diff := cmp.Diff([]string{"a", "c", "e", "there"}, leaseIDs(w)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ns /lease a", "ns /lease c", "ns /lease e"}, w.events.take()); diff != "" {
		t.Error(diff)
	}
}

// TestAnswerRestsOnWhatStays: the second finds the lease that the first made,
// but the first is rolled back in the end.
func TestAnswerRestsOnWhatStays(t *testing.T) {
	w := newWorld(t)
	broken := errors.New("broken")
	errs := queue(w,
		func(tx *Tx) error { return errors.Join(addLease("x")(tx), broken) },
		addLease("x"),
	)
	if !errors.Is(errs[0], broken) && result(errs[0]) != "already_exists" || errs[1] != nil {
		t.Error(errs)
	}
	if diff := cmp.Diff([]string{"x"}, leaseIDs(w)); diff != "" {
		t.Error(diff)
	}
}

func TestCancelWhileQueued(t *testing.T) {
	w := newWorld(t)
	open := gate(w)
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error)
	go func() { done <- w.Update(ctx, addLease("x")) }()
	w.queued(1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	open()
	w.must(w.Update(bg, addLease("y")))
	if diff := cmp.Diff([]string{"y"}, leaseIDs(w)); diff != "" {
		t.Error(diff)
	}
}

func TestClose(t *testing.T) {
	w := newWorld(t)
	open := gate(w)
	var group sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		group.Go(func() { errs[i] = w.Update(bg, addLease(fmt.Sprint(i))) })
	}
	w.queued(len(errs))
	group.Go(func() { w.must(w.DB.Close()) })
	open()
	group.Wait()
	for i, err := range errs {
		if err != nil && result(err) != "unavailable" {
			t.Errorf("%d: %v", i, err)
		}
	}
	for what, err := range map[string]error{
		"update":  w.Update(bg, addLease("late")),
		"view":    w.View(func(*Tx) error { return nil }),
		"collect": second(w.Collect(bg)),
		"close":   w.DB.Close(),
	} {
		if what == "close" && err != nil || what != "close" && result(err) != "unavailable" {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.must(w.disk.Close())
	w.open()
	var want []string
	for i, err := range errs {
		if err == nil {
			want = append(want, fmt.Sprint(i))
		}
	}
	if diff := cmp.Diff(want, leaseIDs(w), cmpopts.SortSlices(func(a, b string) bool { return a < b }), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// TestHalfFailedCommit: if it is not known what of a commit is on disk, there
// are no more changes until a new start has read it.
func TestHalfFailedCommit(t *testing.T) {
	w := newWorld(t)
	w.must(w.Update(bg, addLease("x")))
	w.must(w.committer.do(&job{ctx: bg, plain: func() { w.committer.fail(errors.New("fdatasync: input/output error")) }}))
	err := w.Update(bg, addLease("y"))
	if result(err) != "unavailable" || !strings.Contains(err.Error(), "input/output error") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"x"}, leaseIDs(w)); diff != "" {
		t.Error(diff)
	}
	w.restart()
	w.must(w.Update(bg, addLease("y")))
}

func TestHooks(t *testing.T) {
	w := newWorld(t)
	garbage := make(chan struct{}, 10)
	w.OnDelete(func() { garbage <- struct{}{} })
	w.must(w.Update(bg, addLease("x")))
	if len(garbage) != 0 {
		t.Error("a create makes garbage")
	}
	w.must(w.Leases(Scope{Namespace: "ns"}).Delete(bg, "x"))
	if len(garbage) != 1 {
		t.Error("no word of a delete")
	}
}

// TestPublishPanics: what listens to events can't hurt what makes them.
func TestPublishPanics(t *testing.T) {
	calls := 0
	w := newWorld(t, func(o *Options) {
		o.Publish = func(context.Context, string, string, proto.Message) { calls++; panic("listener") }
	})
	w.must(w.Update(bg, addLease("x")))
	w.must(w.Update(bg, addLease("y")))
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
}

// BenchmarkUpdate has callers that each wait for their change to be on disk.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 2, 16} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			w := newWorld(b)
			commits := func() (id int) {
				w.must(w.View(func(tx *Tx) error { id = tx.bolt.ID(); return nil }))
				return id
			}
			var group sync.WaitGroup
			before := commits()
			b.ResetTimer()
			for caller := range callers {
				group.Go(func() {
					for i := caller; i < b.N; i += callers {
						if err := w.Update(bg, addLease(fmt.Sprint(i))); err != nil {
							b.Error(err)
						}
					}
				})
			}
			group.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/float64(commits()-before), "changes/commit")
		})
	}
}
