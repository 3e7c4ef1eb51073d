package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/bench/internal/report"

	"golang.org/x/sys/unix"
)

// flushCalls are the system calls that wait for a disk.
var flushCalls = []string{"fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"}

func flushesScenario() *Scenario {
	return &Scenario{
		Name:   "flushes",
		Title:  "How often a container's life waits for the disk, counted with strace in the daemon and all that it starts; times are worthless under strace and not given",
		Rounds: once,
		Prepare: func(context.Context, *Env) error {
			_, err := exec.LookPath("strace")
			return err
		},
		Setup: setupPayload,
		Round: func(ctx context.Context, r *Run, round int) error { return r.flushes(ctx) },
	}
}

func (r *Run) flushes(ctx context.Context) (err error) {
	path := filepath.Join(r.WorkDir, "strace-"+r.Label)
	defer os.Remove(path)
	cmd := exec.Command("strace", "-f", "-qq", "-c", "-e", "trace="+strings.Join(flushCalls, ","), "-o", path, "-p", fmt.Sprint(r.D.Pid()))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := false
	defer func() {
		if !ended {
			err = errors.Join(err, endTracer(cmd))
		}
	}()
	if err := awaitTracer(ctx, r.D.Pid()); err != nil {
		return err
	}
	for range r.P.FlushLives {
		if err := r.lifecycle(ctx, r.id("traced"), func(string, time.Duration) {}); err != nil {
			return err
		}
	}
	ended = true
	if err := endTracer(cmd); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	counts, err := parseCounts(f)
	if err != nil {
		return err
	}
	total := 0
	for _, call := range flushCalls {
		total += counts[call]
		r.add(call+" per life", "count", report.Info, float64(counts[call])/float64(r.P.FlushLives))
	}
	r.add("flushes per life", "count", report.Lower, float64(total)/float64(r.P.FlushLives))
	return nil
}

// awaitTracer returns when a process is being traced.
func awaitTracer(ctx context.Context, pid int) error {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		if !strings.Contains(string(status), "TracerPid:\t0\n") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("strace does not attach: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// endTracer lets strace detach and write its counts. On a signal it ends by
// that same signal.
func endTracer(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var exit *exec.ExitError
	select {
	case err := <-done:
		if errors.As(err, &exit) {
			return nil
		}
		return err
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("strace does not end"), cmd.Process.Kill(), <-done)
	}
}

// parseCounts reads the table of strace -c: the name of a call is the last
// field of its line, and their number the fourth.
func parseCounts(r io.Reader) (map[string]int, error) {
	const callsField = 3
	counts := map[string]int{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= callsField || !slices.Contains(flushCalls, fields[len(fields)-1]) {
			continue
		}
		n, err := strconv.Atoi(fields[callsField])
		if err != nil {
			return nil, fmt.Errorf("strace: %q: %w", lines.Text(), err)
		}
		counts[fields[len(fields)-1]] = n
	}
	return counts, lines.Err()
}
