//go:build faults

package metadata

import (
	"os"
	"testing"

	"github.com/berthd/berth/internal/fault"
)

// TestCompactFates fails each step of a compaction in both ways: whichever file
// is in place then has all rows.
func TestCompactFates(t *testing.T) {
	w, s := bloated(t, 100)
	whole, err := os.ReadFile(w.options.Path)
	w.must(err)
	for _, step := range []string{"sync", "rename", "syncdir"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(step+" "+string(fate), func(t *testing.T) {
				w.t = t
				w.must(os.WriteFile(w.options.Path, whole, 0o600))
				disarm := fault.Set(compactOp+"."+step, fate)
				w.open()
				disarm()
				w.holds(s, 100)
				w.close()
				w.open()
				w.holds(s, 100)
				if n := w.size(); n > 10<<20 {
					t.Errorf("%d bytes", n)
				}
				w.close()
			})
		}
	}
}
