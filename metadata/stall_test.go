package metadata

import (
	"slices"
	"testing"
	"time"
)

// TestStall runs callers beside collections of 1,000 images, 5,000 blobs and
// 2,000 snapshots, and for as long without: what a call waits for a collection
// is what it takes longer. Compared is what one call in a hundred exceeds, and
// the best of some rounds counts: the rest tells of who else is on the machine.
func TestStall(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("makes many rows, and measures time")
	}
	const longest, rounds = 10 * time.Millisecond, 5
	w := newWorldIn(t, benchDir(t), func(o *Options) { o.Drivers["native"].(*testDriver).lazy = true })
	defer w.close()
	s, others := Scope{Namespace: "ns"}, Scope{Namespace: "others"}
	fillImages(t, w, Scope{Namespace: "stays"}, 1000, 5000, 2000)
	at := func(calls []time.Duration, permille int) time.Duration {
		slices.Sort(calls)
		return calls[len(calls)*permille/1000]
	}
	for round := range rounds {
		fillImages(t, w, s, 1000, 5000, 2000)
		w.must(w.Update(bg, func(tx *Tx) error { return tx.deletePrefix(imageTable.bucket, path(s.Namespace, "")) }))
		stop := beside(t, w, others, 4)
		r := w.collect()
		during := stop()
		if r.Content != 5000 || r.Snapshots != 2000 {
			t.Fatalf("%+v", r)
		}
		w.settled()
		stop = beside(t, w, others, 4)
		<-time.After(r.Duration)
		without := stop()
		t.Logf("%d calls during a collection of %v: 99 %% within %v, 99.9 %% within %v; %d without: %v, %v", len(during), r.Duration,
			at(during, 990), at(during, 999), len(without), at(without, 990), at(without, 999))
		if at(during, 990) <= at(without, 990)+longest {
			return
		}
		if round == rounds-1 {
			t.Errorf("calls beside a collection took %v, %v without one", at(during, 990), at(without, 990))
		}
	}
}
