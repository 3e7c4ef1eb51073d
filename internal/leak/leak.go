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
func Check(t testing.TB) {
	t.Helper()
	check(t, look)
}

// CheckProcess is Check without mounts, which are not the process's own but of
// all in its mount namespace: for tests that mount nothing, and must not fail
// because others do at the same time.
func CheckProcess(t testing.TB) {
	t.Helper()
	check(t, func() (snapshot, error) {
		s, err := look()
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

// wait looks until nothing is new, and after limit says what is.
func wait(before snapshot, look func() (snapshot, error), limit time.Duration) string {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		now, err := look()
		if err != nil {
			return fmt.Sprintf("leak: %v", err)
		}
		report := now.since(before)
		if report == "" || time.Now().After(deadline) {
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
	list func() (map[string]string, error)
}{
	{"goroutine", goroutines},
	{"child process", children},
	{mountSort, mounts},
	{"open file", files},
}

func look() (snapshot, error) {
	s := snapshot{}
	for _, sort := range sorts {
		list, err := sort.list()
		if err != nil {
			return nil, fmt.Errorf("list each %s: %w", sort.name, err)
		}
		s[sort.name] = list
	}
	return s, nil
}

// since reports what s has and before lacks; nothing is the empty text.
func (s snapshot) since(before snapshot) string {
	var out strings.Builder
	for _, sort := range sorts {
		for _, id := range slices.Sorted(maps.Keys(s[sort.name])) {
			if _, ok := before[sort.name][id]; !ok {
				fmt.Fprintf(&out, "leaked %s %s\n", sort.name, s[sort.name][id])
			}
		}
	}
	return out.String()
}
