package scripts

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestInterruptAtAnyMoment ends `berth run` with ^C at moments from before it
// has connected to after its command has ended. Whatever the moment, it ends
// itself, and leaves nothing.
func TestInterruptAtAnyMoment(t *testing.T) {
	const (
		moments = 40
		step    = 15 * time.Millisecond
	)
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	namespace := "interrupt-" + d.Dir[len(d.Dir)-6:]
	t.Cleanup(func() {
		if err := end(d, namespace); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	berth := func(args ...string) *exec.Cmd {
		cmd := exec.Command(programs.Path("berth"), args...)
		cmd.Env = append(os.Environ(), "BERTH_ADDRESS="+d.Address, "BERTH_NAMESPACE="+namespace, "GORACE=halt_on_error=0 atexit_sleep_ms=0")
		return cmd
	}
	if out, err := berth("images", "import", programs.Image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	statuses := map[int]int{}
	for i := range moments {
		mode := []string{"--rm", "-d"}[i%2]
		cmd := berth("run", mode, harness.ImageName, "sh", "-c", "trap 'exit 9' INT; sleep 0.2")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(i)*step, func() { cmd.Process.Signal(syscall.SIGINT) })
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if stop(); ctx.Err() != nil {
			t.Fatalf("^C after %v: berth run did not end", time.Duration(i)*step)
		}
		cancel()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		status := cmd.ProcessState.ExitCode()
		statuses[status]++
		switch {
		case status == -1: // before it had taken over its signals
		case status == 130, status == 0, status == 9:
		default:
			t.Errorf("^C after %v: exit status %d\n%s", time.Duration(i)*step, status, out.String())
		}
		if mode == "-d" && status == 0 {
			id := strings.TrimSpace(out.String())
			if removed, err := berth("rm", "-f", id).CombinedOutput(); err != nil {
				t.Errorf("rm: %v\n%s", err, removed)
			}
		}
		left, err := berth("ps", "-aq").CombinedOutput()
		if err != nil || len(left) > 0 {
			t.Fatalf("^C after %v, exit status %d: left %q, %v\n%s", time.Duration(i)*step, status, left, err, out.String())
		}
	}
	t.Logf("how often it ended with which status: %v", statuses)
}
