package sys

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHugePages has processes with and without transparent huge pages started by
// a process that has them, and by one that does not.
func TestHugePages(t *testing.T) {
	has := func(with func(func() error) error) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", "grep THP_enabled /proc/self/status")
		var out strings.Builder
		cmd.Stdout = &out
		err := with(cmd.Start)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(out.String()), " ")
	}
	check := func() {
		t.Helper()
		if got := has(StartSmall); got != "THP_enabled: 0" {
			t.Errorf("a small process has %q", got)
		}
		if got := has(StartPlain); got != "THP_enabled: 1" {
			t.Errorf("a plain process has %q", got)
		}
	}
	check()
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	check()
	if was, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0); err != nil || was != 1 {
		t.Errorf("the flag of this process is %d now, %v", was, err)
	}
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := StartSmall(func() error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if was, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0); err != nil || was != 0 {
		t.Errorf("after a failed start the flag is %d, %v", was, err)
	}
}
