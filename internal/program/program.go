// Package program owns how the daemon runs programs that somebody configured:
// with nothing of the daemon's environment, in a process group that is killed as
// one, and with a bound on what is kept of their words. Which program it is comes
// from the configuration, never from an image, a label or a client.
package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxWords is how many bytes are kept of what a program writes for people.
	maxWords = 4 << 10
	// grace is how long pipes are waited for that a killed program's children hold.
	grace = time.Second
)

// Command prepares a program that is killed, with all that it has started, when
// ctx ends. It gets PATH and env, and no other variable. What it writes on
// standard error is kept, the end of it, in the Tail.
func Command(ctx context.Context, path string, args, env []string) (*exec.Cmd, *Tail) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return KillGroup(cmd) }
	cmd.WaitDelay = grace
	tail := &Tail{}
	cmd.Stderr = tail
	return cmd, tail
}

// KillGroup kills a program that was started, and all of its process group.
func KillGroup(cmd *exec.Cmd) error {
	err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Failed says why a program failed: that its time was up, or its exit code, with
// its last words.
func Failed(ctx context.Context, name string, err error, words *Tail) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if said := strings.TrimSpace(words.String()); said != "" {
		return fmt.Errorf("program %s: %w (it says: %q)", name, err, said)
	}
	return fmt.Errorf("program %s: %w", name, err)
}

// Trusted tells why a program, or a directory of programs, must not be run as
// this user: others could have written it. FailedPrecondition.
func Trusted(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s has mode %s and owner %d: it has to be root's, and nobody else may write it: %w",
			path, info.Mode(), st.Uid, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Tail keeps the end of what is written to it.
type Tail struct{ kept bytes.Buffer }

// Write implements io.Writer.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > maxWords {
		p = p[len(p)-maxWords:]
	}
	if over := t.kept.Len() + len(p) - maxWords; over > 0 {
		t.kept.Next(over)
	}
	t.kept.Write(p)
	return n, nil
}

// String gives what is kept.
func (t *Tail) String() string { return t.kept.String() }
