package scenario

import (
	"maps"
	"strings"
	"testing"
)

func TestParseCounts(t *testing.T) {
	table := `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 75.00    0.000300         100         3           fdatasync
 25.00    0.000100          50         2         1 fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.000400          80         5         1 total
`
	got, err := parseCounts(strings.NewReader(table))
	if want := map[string]int{"fdatasync": 3, "fsync": 2}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := parseCounts(strings.NewReader("")); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := parseCounts(strings.NewReader("1 2 3 x fsync\n")); err == nil {
		t.Error("a bad table is no error")
	}
}
