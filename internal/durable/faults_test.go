//go:build faults

package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/internal/fault"
)

// TestTwoFates fails each step of WriteFile in both ways: the file holds the
// old or the new text, whole, and nothing is left beside it.
func TestTwoFates(t *testing.T) {
	fault.Reset()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile("op", path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	points := fault.Seen()
	if len(points) != 4 {
		t.Fatalf("points: %v", points)
	}
	for _, point := range points {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			if err := WriteFile("op", path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			disarm := fault.Set(point, fate)
			err := WriteFile("op", path, []byte("new"), 0o600)
			disarm()
			if !errors.Is(err, fault.ErrInjected) {
				t.Fatalf("%s %s: %v", point, fate, err)
			}
			got, _ := os.ReadFile(path)
			if string(got) != "old" && string(got) != "new" {
				t.Fatalf("%s %s: %q", point, fate, got)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Fatalf("%s %s left %v", point, fate, entries)
			}
		}
	}
}
