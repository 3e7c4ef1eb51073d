package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/berthd/berth/test/harness"
)

// ctrArgs are the arguments of a ctr that runs a container of this runtime.
func (d *daemon) ctrArgs(args ...string) []string {
	return append([]string{"--address", d.address, "--namespace", "berth", "run", "--rm", "--runtime", runtimeName}, args...)
}

// TestInput has a container read what ctr does, to its end.
func TestInput(t *testing.T) {
	d := newDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text := strings.Repeat("0123456789abcde\n", 20_000)
	cmd := exec.CommandContext(ctx, ctrProgram(), d.ctrArgs(harness.ImageName, "reads", "cat")...)
	cmd.Stdin = strings.NewReader(text)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil || string(out) != text {
		t.Errorf("%d bytes of %d came back, %v, %q", len(out), len(text), err, errOut.String())
	}
}

// TestTerminal gives a container a terminal: it has a size, input and output.
func TestTerminal(t *testing.T) {
	d := newDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, ctrProgram(), d.ctrArgs("-t", harness.ImageName, "term", "sh", "-c",
		"read line; until stty size 2>/dev/null | grep -q 77; do sleep 0.01; done; echo size $(stty size) of $(tty); echo got $line; exit 6")...)
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if _, err := io.WriteString(terminal, "hello\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(terminal) // ends with EIO
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("%v, want exit status 6", err)
	}
	for _, want := range []string{"size 33 77 of /dev/pts/0", "got hello"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q has no %q", out, want)
		}
	}
}

// TestLogURI has output go where an address says.
func TestLogURI(t *testing.T) {
	d := newDaemon(t)
	file := filepath.Join(d.dir, "out", "file.log")
	logger := filepath.Join(d.dir, "logger")
	logged := filepath.Join(d.dir, "logged")
	script := fmt.Sprintf("#!/bin/sh\nexec 5>&-\n{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; } >%s.part && mv %s.part %s\n", logged, logged, logged)
	if err := os.WriteFile(logger, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ id, uri, path, want string }{
		{"file", "file://" + file, file, "hello\n"},
		{"binary", "binary://" + logger, logged, "berth/binary\nhello\n"},
	} {
		d.ctr("run", "-d", "--log-uri", c.uri, "--runtime", runtimeName, harness.ImageName, c.id, "echo", "hello")
		d.end(c.id, 0)
		d.eventually("the log "+c.path, func() error {
			if data, err := os.ReadFile(c.path); err != nil || string(data) != c.want {
				return fmt.Errorf("%q, %v, want %q", data, err, c.want)
			}
			return nil
		})
	}
}

// TestCurrentCtr runs containers with the ctr of another version than the daemon.
func TestCurrentCtr(t *testing.T) {
	program := programs.Tool("bin/ctr")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run scripts/deps.sh test", err)
	}
	d := newDaemon(t)
	run := func(args ...string) (string, int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, args...)
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%v: %v, %s", args, err, errOut.String())
		}
		if errOut.Len() > 0 {
			t.Logf("%v: %s", args, errOut.String())
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, status := run(d.ctrArgs(harness.ImageName, "a", "sh", "-c", "echo out; exit 3")...); out != "out\n" || status != 3 {
		t.Errorf("run: %q, %d", out, status)
	}
	d.run("b", "sleep", "1000")
	if out, status := run("--address", d.address, "--namespace", "berth", "tasks", "exec", "--exec-id", "x", "b", "sh", "-c", "echo in; exit 4"); out != "in\n" || status != 4 {
		t.Errorf("exec: %q, %d", out, status)
	}
	if out, status := run("--address", d.address, "--namespace", "berth", "tasks", "metrics", "b"); !strings.Contains(out, "memory") || status != 0 {
		t.Errorf("metrics: %q, %d", out, status)
	}
	d.end("b", 137)
}
