//go:build faults

package runtime

import (
	"errors"
	"testing"

	"github.com/berthd/berth/internal/fault"
)

// TestFaults fails each durable step of a task's life in both ways, in a real
// life with a shim: whatever call it hits fails or not, and afterwards the same
// life can be lived again, and nothing is left.
func TestFaults(t *testing.T) {
	fault.Reset()
	m := newMachine(t)
	d := m.start()
	life := func() error {
		if err := d.create("a", script{Args: []string{"sh", "-c", "exit 7"}}); err != nil {
			return err
		}
		d.runStarted("a")
		if status, err := d.wait("a", ""); err != nil || status != 7 {
			t.Fatal(status, err)
		}
		status, err := d.delete("a")
		if err == nil && status != 7 {
			t.Fatal(status)
		}
		return err
	}
	if err := life(); err != nil {
		t.Fatal(err)
	}
	points := fault.Seen()
	if len(points) < 6 {
		t.Fatalf("points: %v", points)
	}
	for _, point := range points {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			disarm := fault.Set(point, fate)
			err := life()
			disarm()
			if err != nil && !errors.Is(err, fault.ErrInjected) {
				t.Fatalf("%s %s: %v", point, fate, err)
			}
			t.Logf("%s %s: %v", point, fate, err)
			if len(d.Report()) != 0 {
				d.end("a", 7)
			}
			m.noLeftovers()
			if err := life(); err != nil {
				t.Fatalf("after %s %s: %v", point, fate, err)
			}
		}
	}
}
