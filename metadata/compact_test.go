package metadata

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/internal/durable"
)

// bloated makes a database of which most is free, and closes it.
func bloated(t *testing.T, kept int) (*world, Scope) {
	t.Helper()
	w := newWorldIn(t, t.TempDir())
	s := Scope{Namespace: "ns"}
	const n = 4000
	fillContainers(t, w.DB, s, n)
	for from := kept; from < n; from += 500 {
		w.must(w.Update(bg, func(tx *Tx) error {
			for i := from; i < min(from+500, n); i++ {
				if err := containerTable.Delete(tx, s.Namespace, fmt.Sprintf("c%05d", i)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	w.close()
	return w, s
}

func (w *world) size() int64 {
	w.t.Helper()
	info, err := os.Stat(w.options.Path)
	w.must(err)
	return info.Size()
}

// holds fails the test unless the database has the first n containers, whole,
// and can be written to.
func (w *world) holds(s Scope, n int) {
	w.t.Helper()
	all, err := w.Containers(s).List(bg)
	w.must(err)
	if len(all) != n {
		w.t.Errorf("%d containers, want %d", len(all), n)
	}
	for i, c := range all {
		if c.Id != fmt.Sprintf("c%05d", i) || len(c.Spec.GetValue()) != 6<<10 {
			w.t.Errorf("container %d is %q with %d bytes", i, c.Id, len(c.Spec.GetValue()))
		}
	}
	w.must(second(w.Containers(s).Create(bg, testContainer("new"))))
	w.must(w.Containers(s).Delete(bg, "new"))
	w.mustBeClean()
	if entries, err := filepath.Glob(filepath.Join(w.dir, durable.TempPrefix+"*")); err != nil || len(entries) > 0 {
		w.t.Errorf("left: %v, %v", entries, err)
	}
}

// TestCompact: a database that most was removed from is smaller after the next
// start, and has what it had.
func TestCompact(t *testing.T) {
	w, s := bloated(t, 100)
	before := w.size()
	// What a killed process has left of one is in nobody's way.
	w.must(os.WriteFile(filepath.Join(w.dir, durable.TempPrefix+"meta.db"), []byte("half"), 0o600))
	w.open()
	if after := w.size(); before < 20<<20 || after > 10<<20 {
		t.Errorf("%d bytes, %d before", after, before)
	}
	w.holds(s, 100)
	w.close()
	// One that is in use is left alone.
	w, s = bloated(t, 2500)
	before = w.size()
	w.open()
	if after := w.size(); after < before {
		t.Errorf("%d bytes, %d before", after, before)
	}
	w.holds(s, 2500)
	w.close()
}

// TestCompactNoRoom: without room for a second file the first one serves.
func TestCompactNoRoom(t *testing.T) {
	w, s := bloated(t, 100)
	// A directory that is not empty is in the way of the new file.
	blocked := filepath.Join(w.dir, durable.TempPrefix+"meta.db")
	w.must(os.MkdirAll(filepath.Join(blocked, "x"), 0o700))
	w.open()
	w.must(os.RemoveAll(blocked))
	w.holds(s, 100)
	w.close()
}
