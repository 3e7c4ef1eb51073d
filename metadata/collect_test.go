package metadata

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
)

// chain makes garbage of which each part refers to the next: content, with a
// chain of snapshots at its end.
func chain(w *world, s Scope, blobs, layers int) (head string) {
	w.t.Helper()
	native := w.snapshotter(s, "native")
	given := map[string]string{}
	for i := range layers {
		name, parent := fmt.Sprint("layer ", i), ""
		if i > 0 {
			parent = fmt.Sprint("layer ", i-1)
		}
		w.layer(native, name, parent, nil)
		given = map[string]string{labels.GCRefSnapshot + "native": name}
	}
	for i := range blobs {
		head = w.blob(s, fmt.Sprint("blob ", i), given).String()
		given = map[string]string{labels.GCRefContent: head}
	}
	return head
}

// TestRevival brings garbage back to life at each point of a sweep: what is
// then still there has all that it refers to.
func TestRevival(t *testing.T) {
	const blobs, layers = 4, 3
	for at := range blobs + layers + 1 {
		w := newWorld(t)
		s := Scope{Namespace: "ns"}
		w.must(second(w.Leases(s).Create(bg, "l", nil)))
		chain(w, s, blobs, layers)
		w.sweepRows = 1
		part := 0
		w.beforePart = func() {
			if part++; part != at+1 {
				return
			}
			for i := range blobs {
				w.must(w.Leases(s).AddResource(bg, "l", &leases.Resource{Type: "content", Id: digest.FromString(fmt.Sprint("blob ", i)).String()}))
			}
		}
		report := w.collect()
		left := w.left(s)
		// Everything of the chain below its first remaining blob, and the lease.
		if want := blobs + layers - min(at, blobs) + 1; at < blobs && len(left) != want || at >= blobs && len(left) > 1+blobs+layers-at {
			t.Errorf("revived before part %d: %v", at, left)
		}
		if at < blobs && !report.More {
			t.Errorf("revived before part %d: %+v", at, report)
		}
		w.must(w.Leases(s).Delete(bg, "l"))
		w.collect()
		w.collect()
		if left := w.left(s); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestRingsGo(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	w.sweepRows = 1
	// The parent refers to the child: one of them goes first, and it can't be
	// the parent.
	for i := range 4 {
		parent, child := fmt.Sprint("parent ", i), fmt.Sprint("child ", i)
		w.layer(native, parent, "", map[string]string{labels.GCRefSnapshot + "native": child})
		w.layer(native, child, parent, nil)
	}
	if report := w.collect(); report.Snapshots != 8 {
		t.Errorf("%+v", report)
	}
}

func TestReport(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	chain(w, s, 4, 3)
	past := w.options.Now().Add(-time.Minute).Format(time.RFC3339)
	future := w.options.Now().Add(time.Hour).Format(time.RFC3339)
	w.must(second(w.Leases(s).Create(bg, "old", map[string]string{labels.GCExpire: past})))
	w.must(second(w.Leases(s).Create(bg, "new", map[string]string{labels.GCExpire: future})))
	image := testImage("old", digest.FromString("x"))
	image.Labels = map[string]string{labels.GCExpire: past}
	w.must(second(w.Images(s).Create(bg, image, nil)))
	r := w.collect()
	if r.Content != 4 || r.Snapshots != 3 || r.Leases != 1 || r.Images != 1 || r.Ingests != 0 || r.More ||
		r.NextExpiry.Format(time.RFC3339) != future || r.Duration <= 0 || r.LongestStall <= 0 {
		t.Errorf("%+v", r)
	}
	if r = w.collect(); r.Content+r.Snapshots+r.Leases+r.Images+r.Ingests != 0 {
		t.Errorf("%+v", r)
	}
}

func TestExpiryHook(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	var got []time.Time
	w.OnExpire(func(at time.Time) { got = append(got, at) })
	at := w.options.Now().Add(10 * time.Second).Truncate(time.Second)
	w.must(second(w.Leases(s).Create(bg, "plain", nil)))
	w.must(second(w.Leases(s).Create(bg, "ends", map[string]string{labels.GCExpire: at.Format(time.RFC3339)})))
	image := testImage("ends", digest.FromString("x"))
	image.Labels = map[string]string{labels.GCExpire: at.Add(time.Minute).Format(time.RFC3339)}
	w.must(second(w.Images(s).Create(bg, image, nil)))
	if len(got) != 2 || !got[0].Equal(at) || !got[1].Equal(at.Add(time.Minute)) {
		t.Errorf("%v", got)
	}
}

func TestCollectIsCancelled(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	chain(w, s, 4, 3)
	w.sweepRows = 1
	ctx, cancel := context.WithCancel(bg)
	part := 0
	w.beforePart = func() {
		if part++; part == 3 {
			cancel()
		}
	}
	if _, err := w.Collect(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.beforePart = nil
	w.mustBeClean()
	w.collect()
	if left := w.left(s); len(left) > 0 {
		t.Error(left)
	}
}

func TestCloseDuringCollection(t *testing.T) {
	w := newWorld(t)
	chain(w, Scope{Namespace: "ns"}, 4, 3)
	w.sweepRows = 1
	inside, done := make(chan struct{}), make(chan error)
	w.beforePart = func() {
		select {
		case <-inside:
		default:
			close(inside)
		}
		<-w.DB.ctx.Done()
	}
	go func() { done <- second(w.Collect(bg)) }()
	<-inside
	w.must(w.DB.Close())
	if err := <-done; err == nil {
		t.Error("a collection ended well on a closed database")
	}
	w.must(w.disk.Close())
	w.open()
	w.must(w.Sweep(bg))
}

// TestManyChangesDuringSweep: more rows are written between mark and sweep than
// a write transaction looks at.
func TestManyChangesDuringSweep(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	w.must(second(w.Leases(s).Create(bg, "l", nil)))
	const n = 3 * catchUpRows
	var ids []digest.Digest
	var group sync.WaitGroup
	for i := range n {
		ids = append(ids, digest.FromString(fmt.Sprint(i)))
		group.Go(func() { w.blob(s, fmt.Sprint(i), nil) })
	}
	group.Wait()
	once := false
	w.beforePart = func() {
		if once {
			return
		}
		once = true
		for _, d := range ids {
			group.Go(func() {
				if err := w.Leases(s).AddResource(bg, "l", &leases.Resource{Type: "content", Id: d.String()}); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	if r := w.collect(); r.Content != 0 || !r.More {
		t.Errorf("%+v", r)
	}
}

// TestWritersGoOn: a collection of much garbage among much that stays holds up
// no writer for long.
func TestWritersGoOn(t *testing.T) {
	if testing.Short() {
		t.Skip("makes many rows")
	}
	w := newWorldIn(t, t.TempDir())
	defer w.close()
	s := Scope{Namespace: "ns"}
	fill(t, w.DB, s, 5000, 5000)
	var worst, writes atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			start := time.Now()
			if err := w.Update(bg, addLease(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
			writes.Add(1)
			worst.Store(max(worst.Load(), int64(time.Since(start))))
		}
	}()
	parts := 0
	w.beforePart = func() { // lets two writes through before each of the parts
		parts++
		for until, end := writes.Load()+2, time.Now().Add(time.Minute); writes.Load() < until; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("no two writes in a minute before part %d", parts)
				return
			}
		}
	}
	report := w.collect()
	close(stop)
	<-stopped
	if report.Content != 5000 {
		t.Errorf("%+v", report)
	}
	if writes.Load() < 10 || parts <= 5000/defaultSweepRows {
		t.Errorf("%d writes beside a sweep in %d parts", writes.Load(), parts)
	}
	t.Logf("took %v in %d parts, longest stall %v, slowest of %d writes beside it %v",
		report.Duration, parts, report.LongestStall, writes.Load(), time.Duration(worst.Load()))
}

// fill makes rows without bytes: content that an image each holds, and content
// that nothing holds.
func fill(t testing.TB, db *DB, s Scope, held, garbage int) {
	t.Helper()
	const part = 1000
	for from := 0; from < held+garbage; from += part {
		err := db.Update(bg, func(tx *Tx) error {
			for i := from; i < min(from+part, held+garbage); i++ {
				d := digest.FromString(fmt.Sprint(i))
				info := contentInfo(d)
				if i%3 > 0 {
					info.Labels = map[string]string{labels.GCRefContent: digest.FromString(fmt.Sprint(i - 1)).String(), "containerd.io/uncompressed": d.String()}
				}
				if err := blobTable.Create(tx, s.Namespace, d.String(), info); err != nil {
					return err
				}
				if i >= held {
					continue
				}
				name := fmt.Sprint("image ", i)
				if err := imageTable.Create(tx, s.Namespace, name, testImage(name, d)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
