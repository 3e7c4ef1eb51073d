package scripts

import (
	"os"
	"os/exec"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// session is a running daemon and a namespace of a test's own, for tests that no
// script can tell. What it leaves is looked at as it is after a script.
type session struct {
	*harness.Daemon
	t         *testing.T
	namespace string
	env       []string
}

// begin starts a daemon. The namespace is named after what the test does; env are
// further variables for berth.
func begin(t *testing.T, what string, env ...string) *session {
	t.Helper()
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	namespace := what + "-" + d.Dir[len(d.Dir)-6:]
	t.Cleanup(func() {
		if err := end(d, namespace); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	env = append(env, "BERTH_ADDRESS="+d.Address, "BERTH_NAMESPACE="+namespace, harness.Race)
	return &session{d, t, namespace, append(os.Environ(), env...)}
}

// berth is a call that is not made yet.
func (s *session) berth(args ...string) *exec.Cmd {
	cmd := exec.Command(programs.Path("berth"), args...)
	cmd.Env = s.env
	return cmd
}

// must makes a call, and gives what it said.
func (s *session) must(args ...string) string {
	s.t.Helper()
	out, err := s.berth(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("berth %q: %v\n%s", args, err, out)
	}
	return string(out)
}
