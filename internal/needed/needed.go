// Package needed owns what becomes of a test whose program is not on this machine: it
// is skipped, but fails where BERTH_TEST_TOOLS is set, as scripts/test.sh does once all
// of them are installed. It does not know which programs those are: scripts/deps.sh does.
package needed

import (
	"os"
	"os/exec"
	"testing"
)

// Missing ends a test that can't go on for want of something that scripts/deps.sh
// installs.
func Missing(t testing.TB, what any) {
	t.Helper()
	if os.Getenv("BERTH_TEST_TOOLS") != "" {
		t.Fatalf("%v, although BERTH_TEST_TOOLS says that all is installed: run scripts/deps.sh run test", what)
	}
	t.Skipf("%v: scripts/deps.sh run test installs it", what)
}

// Program gives the path of a program, and ends the test if it is not there.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, err)
	}
	return path
}
