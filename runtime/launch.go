package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// child is a shim that this daemon has started. It is reaped by a goroutine, not
// by a thread.
type child struct {
	proc   *sys.Process
	exited chan struct{} // closed once it has ended, or is somebody else's to wait for

	// mu guards reaped, so that its process group is not killed when its number
	// may be another's.
	mu     sync.Mutex
	reaped bool
	status unix.WaitStatus
}

// listen binds a shim's socket. A stale one is removed: the caller knows that
// the task is new.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = os.Remove(path)
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), f.Close())
	}
	return f, nil
}

// launch starts the shim of a task with its listening socket.
func (t *Tasks) launch(k *task, socket *os.File) (*child, error) {
	logFile, err := os.OpenFile(filepath.Join(k.dir, record.ShimLogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	args := []string{filepath.Base(t.cfg.Shim), "serve", "-namespace", k.ns, "-id", k.id, "-bundle", k.dir}
	if k.view().intent.Group != "" {
		args = append(args, "-pod")
	}
	var p *os.Process
	err = sys.StartSmall(func() (err error) {
		p, err = os.StartProcess(t.cfg.Shim, args, &os.ProcAttr{
			Dir:   k.dir,
			Env:   append(t.shimEnv(k.ns), cgroup.MountsVariable+"="+cgroup.Mounts()),
			Files: []*os.File{t.null, logFile, logFile, socket},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	pid := p.Pid
	if err := p.Release(); err != nil {
		return nil, err
	}
	handle, err := sys.OpenProcess(pid) // an unreaped child keeps its pid
	if err != nil {
		_ = unix.Kill(-pid, unix.SIGKILL)
		_, werr := unix.Wait4(pid, nil, 0, nil)
		return nil, errors.Join(fmt.Errorf("start shim: %w", err), werr)
	}
	c := &child{proc: handle, exited: make(chan struct{})}
	t.wg.Go(func() { t.reap(k, c) })
	return c, nil
}

// reapPause is from the end of a shim until it is reaped. The kernel says that a
// process has ended while its last thread is still about to take itself out of
// /proc; who reaps the process meanwhile spins until that is done, which takes
// milliseconds where the thread has to wait for a processor.
const reapPause = 50 * time.Millisecond

// reap waits for a shim, for as long as this daemon runs.
func (t *Tasks) reap(k *task, c *child) {
	defer c.proc.Close()
	err := c.proc.Exited(t.ctx)
	close(c.exited)
	if t.ctx.Err() != nil {
		return
	}
	select {
	case <-time.After(reapPause):
	case <-t.ctx.Done(): // what has ended is not left behind
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), killGrace)
	defer cancel()
	c.mu.Lock()
	if err == nil {
		c.status, err = c.proc.Wait(ctx)
	}
	c.reaped = true
	c.mu.Unlock()
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id, "shim", c.proc.PID())
	switch {
	case err != nil:
		log.Warn("shim not reaped", "error", err)
	case c.status.Signaled():
		log.Info("shim killed", "signal", unix.SignalName(c.status.Signal()))
	case c.status.ExitStatus() != 0:
		log.Info("shim failed", "code", c.status.ExitStatus())
	default:
		log.Debug("shim left")
	}
}

// kill ends the shim and what it has started in its own process group, which
// containers are not in.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = unix.Kill(-c.proc.PID(), unix.SIGKILL)
	}
}

// shimEnv is the environment of a shim: the daemon's own, without what systemd
// meant for the daemon alone.
func (t *Tasks) shimEnv(ns string) []string {
	env := make([]string, 0, 32)
	for _, e := range os.Environ() {
		key, _, _ := strings.Cut(e, "=")
		switch key {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
			"GOMAXPROCS", "GOGC", "GOMEMLIMIT", "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "BERTH_OCI_ROOT", cgroup.MountsVariable:
			continue
		}
		env = append(env, e)
	}
	return append(env,
		"TTRPC_ADDRESS="+t.cfg.TTRPCAddress,
		"GRPC_ADDRESS="+t.cfg.Address,
		"NAMESPACE="+ns,
		"GOMAXPROCS=1", // a second one costs each shim 300 KiB for caches of the allocator
		"BERTH_OCI_ROOT="+filepath.Join(t.cfg.State, ociDir),
	)
}

// logTailSize is how much of a shim's log an error quotes.
const logTailSize = 1024

// logTail reads the end of a bundle's shim.log.
func logTail(dir string) string {
	f, err := os.Open(filepath.Join(dir, record.ShimLogFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, logTailSize)
	var from int64
	if info, err := f.Stat(); err == nil {
		from = max(0, info.Size()-logTailSize)
	}
	n, _ := f.ReadAt(buf, from)
	return string(bytes.TrimSpace(buf[:n]))
}

// gone waits until the shim has ended. It ends it when ctx does first, and tells
// whether that helped.
func (c *child) gone(ctx context.Context) error {
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		c.kill()
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(killGrace):
		return fmt.Errorf("shim %d does not end although it was killed", c.proc.PID())
	}
}

// killGrace is how long the kernel has to end a process that was killed.
const killGrace = 5 * time.Second
