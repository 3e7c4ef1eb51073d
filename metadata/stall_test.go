package metadata

import (
	"slices"
	"testing"
	"time"
)

// TestStall runs callers beside collections of 1,000 images, 5,000 blobs and
// 2,000 snapshots, and for as long without: what a call waits for a collection
// is what it takes longer. Compared is what one call in a hundred exceeds: on a
// machine that others use the slowest tells of them.
func TestStall(t *testing.T) {
	if testing.Short() {
		t.Skip("makes many rows")
	}
	const longest = 10 * time.Millisecond
	w := newWorldIn(t, benchDir(t), func(o *Options) { o.Drivers["native"].(*testDriver).lazy = true })
	defer w.close()
	s, others := Scope{Namespace: "ns"}, Scope{Namespace: "others"}
	fillImages(t, w, Scope{Namespace: "stays"}, 1000, 5000, 2000)
	var during, without []time.Duration
	for range 3 {
		fillImages(t, w, s, 1000, 5000, 2000)
		w.must(w.Update(bg, func(tx *Tx) error { return tx.deletePrefix(imageTable.bucket, path(s.Namespace, "")) }))
		stop := beside(t, w, others, 4)
		r := w.collect()
		during = append(during, stop()...)
		if r.Content != 5000 || r.Snapshots != 2000 {
			t.Fatalf("%+v", r)
		}
		w.settled()
		stop = beside(t, w, others, 4)
		<-time.After(r.Duration)
		without = append(without, stop()...)
	}
	at := func(calls []time.Duration, permille int) time.Duration {
		slices.Sort(calls)
		return calls[len(calls)*permille/1000]
	}
	t.Logf("%d calls during collections: 99 %% within %v, 99.9 %% within %v; %d without: %v, %v", len(during), at(during, 990), at(during, 999),
		len(without), at(without, 990), at(without, 999))
	if at(during, 990) > at(without, 990)+longest {
		t.Errorf("calls beside a collection took %v, %v without one", at(during, 990), at(without, 990))
	}
}
