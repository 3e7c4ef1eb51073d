package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// startMax bounds what is kept of what a command of a foreign shim prints.
const startMax = 64 << 10

// startPipes is how long the output of such a command is read after its end: the
// shim that a start left running may hold it open.
const startPipes = 500 * time.Millisecond

// shimCall is a run of a foreign shim's program.
type shimCall struct {
	binary, dir string
	args        []string // the last one is the command
	env         []string
	input       []byte
	limit       time.Duration
	together    bool // standard error is part of the answer
}

// what names the call in errors.
func (s shimCall) what() string { return filepath.Base(s.binary) + " " + s.args[len(s.args)-1] }

// run runs the program in a process group of its own, within bounds of time and
// output, and gives what it prints.
func (s shimCall) run(ctx context.Context) (stdout, stderr []byte, err error) {
	bound, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	cmd := exec.CommandContext(bound, s.binary, s.args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // not reaped yet
	cmd.WaitDelay = startPipes
	cmd.Stdin = bytes.NewReader(s.input)
	out, errOut := &clipped{max: startMax}, &clipped{max: startMax}
	cmd.Stdout, cmd.Stderr = out, errOut
	if s.together {
		cmd.Stderr = out
	}
	err = sys.StartPlain(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return nil, nil, fmt.Errorf("%s was given up: %w%s", s.what(), ctx.Err(), quoted(out, errOut))
	case bound.Err() != nil:
		return nil, nil, fmt.Errorf("%s did not end within %s: %w%s", s.what(), s.limit, bound.Err(), quoted(out, errOut))
	case errors.Is(err, exec.ErrWaitDelay): // it left somebody with its output
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w%s", s.what(), plain(err), quoted(out, errOut))
	}
	if out.over {
		return nil, nil, fmt.Errorf("%s: more than %d bytes of output", s.what(), startMax)
	}
	return out.buf.Bytes(), errOut.buf.Bytes(), nil
}

// runForeign runs a command of a task's foreign shim and gives what it prints.
func (t *Tasks) runForeign(ctx context.Context, k *task, limit time.Duration, input []byte, command ...string) ([]byte, error) {
	args := append([]string{"-namespace", k.ns, "-address", t.cfg.Address, "-publish-binary", t.cfg.Daemon, "-id", k.id}, t.debugFlag()...)
	s := shimCall{
		binary: k.view().intent.Binary, dir: k.dir, args: append(args, command...), env: t.foreignEnv(k.ns),
		input: input, limit: limit, together: command[len(command)-1] == "start",
	}
	stdout, stderr, err := s.run(ctx)
	if len(stderr) > 0 {
		t.cfg.Log.Warn("shim says", "namespace", k.ns, "id", k.id, "command", s.what(), "text", clip(string(stderr)))
	}
	return stdout, err
}

// foreignEnv is the environment of a foreign shim.
func (t *Tasks) foreignEnv(ns string) []string {
	return append(t.shimEnv(ns), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2") // the literal 2, also for those of version 3
}

// debugFlag has a shim log as much as the daemon does.
func (t *Tasks) debugFlag() []string {
	if t.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		return []string{"-debug"}
	}
	return nil
}

// quoted is the output of a command that failed, for its error.
func quoted(outputs ...*clipped) string {
	var text string
	for _, o := range outputs {
		if s := bytes.TrimSpace(o.buf.Bytes()); len(s) > 0 {
			text += fmt.Sprintf(": %q", s[max(0, len(s)-logTailSize):])
		}
	}
	return text
}
