package scripts

import (
	"bytes"
	"context"
	"errors"
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
	d := begin(t, "interrupt")
	d.must("images", "import", programs.Image)
	statuses := map[int]int{}
	for i := range moments {
		mode := []string{"--rm", "-d"}[i%2]
		cmd := d.berth("run", mode, harness.ImageName, "sh", "-c", "trap 'exit 9' INT; sleep 0.2")
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
			if removed, err := d.berth("rm", "-f", id).CombinedOutput(); err != nil {
				t.Errorf("rm: %v\n%s", err, removed)
			}
		}
		left, err := d.berth("ps", "-aq").CombinedOutput()
		if err != nil || len(left) > 0 {
			t.Fatalf("^C after %v, exit status %d: left %q, %v\n%s", time.Duration(i)*step, status, left, err, out.String())
		}
	}
	t.Logf("how often it ended with which status: %v", statuses)
}
