package supervise

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/runtime/record"
)

// code is what the containers of TestExitMatrix end with.
const code = 9

// Where the record may say that a status is from.
var (
	byShim   = []string{""}
	byParent = []string{"the shim had died; status from wait"}
	byKernel = []string{"the shim had died; status from the kernel"}
	// With nobody there the kernel still knows while pid 1 has not reaped.
	unobserved = []string{"exit unobserved: the shim had died", "the shim had died; status from the kernel, as a zombie"}
)

// TestExitMatrix kills the daemon and the shim, or one of them, in either order
// and before or after the container ends. Its status is right wherever somebody
// or the kernel can tell, and 255 where nobody can; the record says from where
// it is.
func TestExitMatrix(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		steps  string
		source []string
	}{
		{"exit", byShim},
		{"daemon exit start", byShim},
		{"shim exit", byParent},
		{"daemon start exit", byShim},
		{"daemon start shim exit", byKernel},
		{"daemon shim start exit", byKernel},
		{"shim daemon start exit", byKernel},
		{"daemon shim exit start", unobserved},
		{"shim daemon exit start", unobserved},
		{"exit shim", byShim},
		{"exit shim daemon start", byShim},
		{"exit daemon shim start", byShim},
		{"daemon exit shim start", byShim},
		{"shim exit daemon start", byParent},
	} {
		t.Run(strings.ReplaceAll(c.steps, " ", "-"), func(t *testing.T) {
			w := *w
			w.T = t
			w.exit(strings.ReplaceAll(c.steps, " ", "-"), c.steps, c.source)
		})
	}
}

func (w *world) exit(name, steps string, source []string) {
	w.run(name, "sh", "-c", "trap 'exit 9' TERM; : >/ready; while :; do sleep 0.02; done")
	defer w.remove(name)
	init, shim := w.init(name), w.shim(name)
	w.eventually("ready", func() error {
		_, err := os.Stat(filepath.Join("/proc", itoa(init), "root/ready"))
		return err
	})
	defer func() {
		if w.daemon.PID() == 0 { // after a failure
			if err := w.daemon.Start(); err != nil {
				w.Error(err)
			}
		}
	}()
	ended := false
	for step := range strings.FieldsSeq(steps) {
		switch step {
		case "daemon":
			if ended {
				w.recorded(name)
			}
			if err := w.daemon.Kill(); err != nil {
				w.Fatal(err)
			}
		case "start":
			if err := w.daemon.Start(); err != nil {
				w.Fatal(err)
			}
		case "shim":
			if ended {
				w.recorded(name)
			}
			w.kill(shim, unix.SIGKILL)
			w.ended(shim)
		case "exit":
			w.kill(init, unix.SIGTERM)
			w.ended(init)
			ended = true
		}
	}
	exit := w.wait(name)
	var r record.Exit
	if err := record.Read(w.bundle(name), record.ExitFile, &r); err != nil {
		w.Fatal(err)
	}
	if r.Status != exit.Status || r.PID != init {
		w.Errorf("told %d, recorded %+v of init %d", exit.Status, r, init)
	}
	from := func(prefix string) bool {
		return prefix == r.Reason || prefix != "" && strings.HasPrefix(r.Reason, prefix)
	}
	if !slices.ContainsFunc(source, from) {
		w.Errorf("status from %q, want one of %q", r.Reason, source)
	}
	want := uint32(code)
	if strings.HasPrefix(r.Reason, "exit unobserved") {
		want = 255
	}
	if exit.Status != want {
		w.Errorf("status %d (%s), want %d", exit.Status, r.Reason, want)
	}
	w.Logf("%s: %d, from %q", steps, exit.Status, r.Reason)
}

// recorded waits until somebody has recorded how the container ended.
func (w *world) recorded(name string) {
	w.Helper()
	w.eventually("exit recorded", func() error {
		_, err := os.Stat(filepath.Join(w.bundle(name), record.ExitFile))
		return err
	})
}
