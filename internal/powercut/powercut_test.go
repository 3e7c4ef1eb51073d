package powercut

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/internal/leak"
)

// TestCut checks that the disk tells the flushed from the rest, without which
// no test on it could fail.
func TestCut(t *testing.T) {
	for fs := range kinds {
		t.Run(fs, func(t *testing.T) { testCut(t, NewOn(t, fs)) })
	}
}

func testCut(t *testing.T, d *Disk) {
	leak.Check(t)
	write := func(name string, flush bool) {
		f, err := os.Create(filepath.Join(d.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(name); err != nil {
			t.Fatal(err)
		}
		if flush {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("flushed", true)
	write("not", false)
	after := d.Cut(t)
	if data, err := os.ReadFile(filepath.Join(after.Dir, "flushed")); err != nil || string(data) != "flushed" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(after.Dir, "not")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was not flushed is there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.Dir, "not")); err != nil {
		t.Errorf("the disk itself: %v", err)
	}
}
