package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// endStrays kills what a foreign shim has left of itself that nobody can ask to
// leave: it told no pid, or hung between its start and its first answer. Those are
// the processes that run the shim's program or have the environment of a shim, and
// stand in the bundle or have this task on their command line. Containers are not
// among them. The caller knows that the shim serves no other task.
func (t *Tasks) endStrays(ctx context.Context, k *task) error {
	dir, err := os.Stat(k.files())
	if errors.Is(err, os.ErrNotExist) {
		return nil // and nobody could be started in it
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !t.isStray(pid, k, dir) {
			continue
		}
		t.cfg.Log.Warn("process that a shim has left is killed", "namespace", k.ns, "id", k.id, "pid", pid)
		if err := t.end(ctx, pid, func() bool { return t.isStray(pid, k, dir) }); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// endSilent is endShim for a foreign shim that has told no pid.
func (t *Tasks) endSilent(ctx context.Context, k *task, c *conn) error {
	if c != nil {
		select { // it was told to leave
		case <-c.done:
		case <-ctx.Done():
		}
	}
	if t.shared(k) {
		return nil
	}
	return t.endStrays(t.ctx, k)
}

// end kills a process that still is what it was taken for once a handle is on it,
// and waits until it is dead.
func (t *Tasks) end(ctx context.Context, pid int, still func() bool) error {
	p, err := sys.OpenProcess(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if !still() {
		return nil
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	if err := p.Exited(ctx); err != nil {
		return fmt.Errorf("process %d of a shim does not end although it was killed: %w", pid, err)
	}
	return nil
}

func (t *Tasks) isStray(pid int, k *task, dir os.FileInfo) bool {
	if sys.Zombie(pid) || groupedAs(pid, k.id) || !t.isShim(pid, k.view().intent.Binary) {
		return false
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if cwd, err := os.Stat(filepath.Join(proc, "cwd")); err == nil && os.SameFile(cwd, dir) {
		return true
	}
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(string(line), "\x00")
	return flagOf(args, "id") == k.id && flagOf(args, "namespace") == k.ns && flagOf(args, "address") == t.cfg.Address
}

// flagOf gives the value of a flag on a command line.
func flagOf(args []string, name string) string {
	for i, a := range args {
		flag, value, has := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch {
		case flag != name || flag == a:
		case has:
			return value
		case i+1 < len(args):
			return args[i+1]
		}
	}
	return ""
}
