// Package leak owns the question whether a test gave back what it took:
// goroutines, child processes, mounts and open files of this process. It is for
// tests only, and not for those that run in parallel with others, as what it
// counts belongs to the whole process.
package leak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long things may take that are on their way out: a connection
// whose close the other side has yet to see, a child to be reaped.
const patience = 5 * time.Second

// Check looks around now and again when the test ends, after what the test
// registered with Cleanup later than this call. It fails the test with a list
// of what is new, if that is still there after some seconds. So it should be
// the first line of a test.
//
// Mounts belong to all processes in the mount namespace, and go test runs the
// tests of several packages at once. So of mounts only those count that lie
// where the test may mount: in temporary directories that have its name, as
// t.TempDir makes them, in those of mount.WithTemp, and in dirs.
func Check(t testing.TB, dirs ...string) {
	t.Helper()
	check(t, func() (snapshot, error) { return look(t.Name(), dirs...) })
}

// CheckProcess is Check without mounts: for tests that mount nothing.
func CheckProcess(t testing.TB) {
	t.Helper()
	check(t, func() (snapshot, error) {
		s, err := look(t.Name())
		delete(s, mountSort)
		return s, err
	})
}

func check(t testing.TB, look func() (snapshot, error)) {
	t.Helper()
	before, err := look()
	if err != nil {
		t.Fatalf("leak: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			return // the first error tells more than what it left behind
		}
		if report := wait(before, look, patience); report != "" {
			t.Error(report)
		}
	})
}

// wait looks until nothing of what is new now is left, and after limit says
// what is.
func wait(before snapshot, look func() (snapshot, error), limit time.Duration) string {
	var left snapshot
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		now, err := look()
		if err != nil {
			return fmt.Sprintf("leak: %v", err)
		}
		if left == nil {
			left = now.without(before)
		} else {
			left = left.within(now)
		}
		if report := left.report(); report == "" || time.Now().After(deadline) {
			return report
		}
		<-time.After(pause)
	}
}

// snapshot is what there was at one moment: for each sort of thing, a
// description by identity.
type snapshot map[string]map[string]string

const mountSort = "mount"

// sorts are the things that are looked at, in the order of the report.
var sorts = []struct {
	name string
	list func(own places) (map[string]string, error)
}{
	{"goroutine", goroutines},
	{"child process", children},
	{mountSort, mounts},
	{"open file", files},
}

// look lists what there is as far as it can be the named test's.
func look(test string, dirs ...string) (snapshot, error) {
	own := placesOf(test, dirs)
	s := snapshot{}
	for _, sort := range sorts {
		list, err := sort.list(own)
		if err != nil {
			return nil, fmt.Errorf("list each %s: %w", sort.name, err)
		}
		s[sort.name] = list
	}
	return s, nil
}

// without gives what s has and other lacks.
func (s snapshot) without(other snapshot) snapshot {
	return s.keep(func(sort, id string) bool { _, ok := other[sort][id]; return !ok })
}

// within gives what s and other both have.
func (s snapshot) within(other snapshot) snapshot {
	return s.keep(func(sort, id string) bool { _, ok := other[sort][id]; return ok })
}

func (s snapshot) keep(want func(sort, id string) bool) snapshot {
	kept := snapshot{}
	for sort, list := range s {
		kept[sort] = map[string]string{}
		for id, description := range list {
			if want(sort, id) {
				kept[sort][id] = description
			}
		}
	}
	return kept
}

// report lists what s has; nothing is the empty text.
func (s snapshot) report() string {
	var out strings.Builder
	for _, sort := range sorts {
		for _, id := range slices.Sorted(maps.Keys(s[sort.name])) {
			fmt.Fprintf(&out, "leaked %s %s\n", sort.name, s[sort.name][id])
		}
	}
	return out.String()
}
