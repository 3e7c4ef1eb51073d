package needed

import (
	"testing"
)

// told is a test that notes how it was ended.
type told struct {
	testing.TB
	how string
}

func (t *told) Helper()               {}
func (t *told) Fatalf(string, ...any) { t.how = "failed"; panic(t) }
func (t *told) Skipf(string, ...any)  { t.how = "skipped"; panic(t) }

func TestProgram(t *testing.T) {
	for set, want := range map[string]string{"": "skipped", "1": "failed"} {
		t.Setenv("BERTH_TEST_TOOLS", set)
		one := &told{TB: t}
		func() {
			defer func() {
				if r := recover(); r != nil && r != any(one) {
					panic(r)
				}
			}()
			Program(one, "no-such-program")
		}()
		if one.how != want {
			t.Errorf("with BERTH_TEST_TOOLS=%q: %q", set, one.how)
		}
	}
	if path := Program(t, "sh"); path == "" {
		t.Error("no path")
	}
}
