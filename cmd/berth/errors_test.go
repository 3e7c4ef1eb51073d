package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

// TestHintFitsWhatIsAway tells a daemon that is away from a shim that is: the
// texts are those of package runtime.
func TestHintFitsWhatIsAway(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"daemon":         {`exec in container "shim": connection error`, "the daemon went away or is starting"},
		"daemon ends":    {"berthd is stopping", "the daemon went away or is starting"},
		"shim lost":      {`exec: task "box" runs on without its shim (the shim has died)`, "the container runs on"},
		"shim gone":      {`exec: task "box": the shim has gone before it could exec`, "its shim died"},
		"shim not asked": {`exec: task "box": its shim was not asked yet`, "its shim died"},
	} {
		err := fmt.Errorf("%s: %w", test.text, errdefs.ErrUnavailable)
		got := strings.Join((&app{}).hints(&cobra.Command{}, err), "\n")
		if !strings.Contains(got, test.want) {
			t.Errorf("%s: hint %q, want one with %q", name, got, test.want)
		}
	}
	full := fmt.Errorf("write ingest \"r\": write /var/lib/berth/data: no space left on device: %w", errdefs.ErrResourceExhausted)
	if got := (&app{}).hints(&cobra.Command{}, full); len(got) != 1 || !strings.Contains(got[0], "berth prune") {
		t.Errorf("a full disk: hints %q", got)
	}
	limit := errors.New("runc create: exit status 1: error setting rlimits for ready process: error setting rlimit type 7: operation not permitted")
	if got := (&app{}).hints(&cobra.Command{}, limit); len(got) != 1 || !strings.Contains(got[0], "ask for less with --ulimit") {
		t.Errorf("a limit that is too high: hints %q", got)
	}
	if got := (&app{}).hints(&cobra.Command{}, errors.New("something else")); got != nil {
		t.Errorf("an error of no kind: hints %q", got)
	}
}
