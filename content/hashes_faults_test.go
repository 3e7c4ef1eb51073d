//go:build faults

package content

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/fault"
)

// TestRecordFates fails each step of a record in both ways, and stops the
// process there: what was not flushed is written again, and no step spoils a
// hash.
func TestRecordFates(t *testing.T) {
	p := some(900*kib, 1)
	for _, point := range []string{recordOp + ".sync", recordOp + ".write", recordOp + ".rename"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) {
				fault.Reset()
				s := newRecording(t)
				w := begin(t, s, Expect{})
				add(t, w, p[:300*kib]) // one record is there
				disarm := fault.Set(point, fate)
				_, err := w.Write(p[300*kib : 600*kib])
				if err == nil {
					err = w.settle()
				}
				disarm()
				lost := point == recordOp+".sync"
				if lost != errors.Is(err, fault.ErrInjected) || lost != (w.offset == 0) {
					t.Fatalf("at %d: %v", w.offset, err)
				}
				killed := copyOf(t, s)
				k := begin(t, killed, Expect{})
				standsOn(t, k, p[:w.offset], w.offset-k.record.Size)
				finish(t, killed, k, p[k.offset:], p, "")
				finish(t, s, w, p[w.offset:], p, digest.FromBytes(p))
			})
		}
	}
}

// TestLeaveFails: a writer that can't flush what it leaves behind leaves nothing.
func TestLeaveFails(t *testing.T) {
	fault.Reset()
	s := newRecording(t)
	p := some(100*kib, 1)
	w := begin(t, s, Expect{})
	add(t, w, p)
	disarm := fault.Set(recordOp+".sync", fault.FailBefore)
	err := w.Close()
	disarm()
	if !errors.Is(err, fault.ErrInjected) {
		t.Error(err)
	}
	w = begin(t, s, Expect{})
	standsOn(t, w, nil, 0)
	finish(t, s, w, p, p, "")
}
