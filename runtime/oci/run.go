package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/sys"
)

// LogFile is the name of the log of the last call that failed, in LogDir.
const LogFile = "runtime.log"

// maxOutput bounds what is kept of a call's output. What a runtime writes
// beyond it fails in the runtime.
const maxOutput = 64 << 10

// killWait is how long a killed call may take to be gone. A process that hangs
// in the kernel does not end by SIGKILL; it is left to whoever reaps orphans.
const killWait = 5 * time.Second

// call is one run of the runtime's binary.
type call struct {
	command string
	args    []string
	stdio   Stdio
	shared  bool // stdio is the container's too: capture nothing
	bare    bool // about no container: without a log and a root
}

// sequence makes the names of log files of one process differ.
var sequence atomic.Uint64

// run runs the binary and waits for its end or that of ctx. A failure is an
// *Error.
func (c *CLI) run(ctx context.Context, k call) (err error) {
	path, err := c.lookup()
	if err != nil {
		return err
	}
	argv, log := c.arguments(path, k)

	var stderr *os.File
	if !k.shared && k.stdio.Err == nil {
		if stderr, err = memoryFile("stderr", maxOutput); err != nil {
			return err
		}
		defer stderr.Close()
		k.stdio.Err = stderr
	}
	status, err := spawn(ctx, path, argv, k.stdio)
	if err == nil && status.Exited() && status.ExitStatus() == 0 {
		removeLog(log)
		return nil
	}
	failure := &Error{Binary: c.name(), Command: k.command, ExitCode: -1, Err: err}
	if err == nil {
		if failure.ExitCode = status.ExitStatus(); status.Signaled() {
			failure.Signal = status.Signal()
		}
	}
	failure.Message = message(log, stderr)
	if k.bare {
		return failure
	}
	// Keeping the log is a service to whoever looks into the bundle; that it
	// could not be kept changes nothing about the failure.
	if durable.RenameVolatile("oci.log", log, filepath.Join(c.LogDir, LogFile)) != nil {
		removeLog(log)
	}
	return failure
}

// arguments makes the command line of a call, and the path of its log; "" if it
// has none.
func (c *CLI) arguments(path string, k call) (argv []string, log string) {
	if k.bare {
		return append([]string{path, k.command}, k.args...), ""
	}
	log = filepath.Join(c.LogDir, fmt.Sprintf("%sruntime-%d-%d.log", durable.TempPrefix, os.Getpid(), sequence.Add(1)))
	argv = []string{path, "--log", log, "--log-format", "json"}
	if c.Root != "" {
		argv = append(argv, "--root", c.Root)
	}
	if c.SystemdCgroup {
		argv = append(argv, "--systemd-cgroup")
	}
	return append(append(argv, k.command), k.args...), log
}

// removeLog removes the log of a call. One that stays is removed with the bundle.
func removeLog(path string) {
	if path != "" {
		_ = os.Remove(path)
	}
}

// lookup finds the runtime's binary.
func (c *CLI) lookup() (string, error) {
	if known := c.found.Load(); known != nil && unix.Access(*known, unix.X_OK) == nil {
		return *known, nil
	}
	path, err := exec.LookPath(c.binary())
	if err != nil {
		return "", &MissingError{Binary: c.binary(), Err: err}
	}
	c.found.Store(&path)
	return path, nil
}

// spawn starts the process in a process group of its own and waits for it. If
// ctx ends first the whole group is killed and the error is that of ctx.
func spawn(ctx context.Context, path string, argv []string, stdio Stdio) (unix.WaitStatus, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	files := [3]*os.File{stdio.In, stdio.Out, stdio.Err}
	var fds [3]uintptr
	for i, f := range files {
		if f == nil {
			f = null
		}
		fds[i] = f.Fd()
	}
	var pid int
	err = sys.StartPlain(func() (err error) { // a container is none of the small ones
		pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{
			Env:   environment(),
			Files: fds[:],
			// Should the shim be killed while the runtime hangs, it must not be left
			// behind. What the runtime itself has started by then does not inherit
			// this: a container goes on.
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		})
		return err
	})
	runtime.KeepAlive(files)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	process, err := sys.OpenProcess(pid)
	if err != nil {
		// It is our child and not waited for, so it is there; without a handle
		// it can only be ended.
		killGroup(pid)
		_, werr := unix.Wait4(pid, nil, 0, nil)
		return 0, errors.Join(err, werr)
	}
	defer process.Close()
	status, err := process.Wait(ctx)
	if err == nil || ctx.Err() == nil {
		return status, err
	}
	killGroup(pid)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	if _, err := process.Wait(late); err != nil {
		return 0, fmt.Errorf("%w (killed, and still not gone after %s)", ctx.Err(), killWait)
	}
	return 0, ctx.Err()
}

// killGroup ends a process group. That it is gone already is what was wanted.
func killGroup(pgid int) { _ = unix.Kill(-pgid, unix.SIGKILL) }

// environment is what a runtime gets: ours as it was at the first call, without
// what speaks to one process alone.
var environment = sync.OnceValue(func() []string {
	all := os.Environ()
	env := all[:0:0]
	for _, kv := range all {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GOMAXPROCS":
		default:
			env = append(env, kv)
		}
	}
	return env
})

// memoryFile makes a file that is nowhere but in memory. With a size, writes
// beyond it fail.
func memoryFile(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if size == 0 {
		return f, nil
	}
	err = f.Truncate(size)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memory file: %w", err), f.Close())
	}
	return f, nil
}

// written returns what a process wrote to a memory file: up to the position,
// which the process shared.
func written(f *os.File) ([]byte, error) {
	n, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	data := make([]byte, n)
	_, err = f.ReadAt(data, 0)
	return data, err
}
