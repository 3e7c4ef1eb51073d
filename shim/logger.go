package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// Bounds of a logger's life.
const (
	loggerReady = 10 * time.Second // until it says that it is ready
	loggerGrace = 2 * time.Second  // after its streams have ended, to end by itself
	loggerTerm  = 12 * time.Second // from SIGTERM to SIGKILL
)

// logger is a program that takes the output of a process (binary:// and
// binary-v2://). It reads the pipes that the process writes: nothing goes through
// here. The shim keeps the pipes open for reading, so that the process does not
// notice if the logger dies; what it writes is thrown away from then on.
type logger struct {
	shim   *Shim
	proc   *sys.Process
	path   string
	pipes  [2]*os.File // stdout, stderr, as the logger has them; nil: none
	exited chan struct{}
	closed chan struct{}
	once   sync.Once
	drains sync.WaitGroup
}

// openLogger starts the logger that an address names and makes the pipes to it.
func (s *streams) openLogger(to target) (err error) {
	var reads [2]*os.File
	for i, end := range []**os.File{&s.child.Out, &s.child.Err} {
		if *end, reads[i], err = blockingPipe(to.path, s.owner); err != nil {
			break
		}
	}
	if err == nil {
		s.logger, err = startLogger(s.place, to, reads)
	}
	if err != nil {
		closeAll(reads[:])
	}
	return err
}

// loggerForTerminal lets what a terminal shows go to a logger.
func (s *streams) loggerForTerminal(master *os.File, to target) error {
	var reads [2]*os.File
	write, read, err := blockingPipe(to.path, owner{})
	if err != nil {
		return errors.Join(err, master.Close())
	}
	reads[0] = read
	if s.logger, err = startLogger(s.place, to, reads); err != nil {
		return errors.Join(err, master.Close(), write.Close(), read.Close())
	}
	ours, err := reopen(write, unix.O_WRONLY)
	_ = write.Close() // nothing was written
	if err != nil {
		return errors.Join(err, master.Close())
	}
	p, err := s.addOutput(master, ours)
	p.fifo = false // it has a reader for as long as it is open
	return err
}

// blockingPipe makes a pipe both of whose ends block, as programs expect.
func blockingPipe(name string, own owner) (write, read *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe for %s: %w", name, err)
	}
	write, read = os.NewFile(uintptr(fds[1]), name), os.NewFile(uintptr(fds[0]), name)
	if own != (owner{}) {
		if err := write.Chown(int(own.uid), int(own.gid)); err != nil {
			closeAll([]*os.File{write, read})
			return nil, nil, fmt.Errorf("pipe for %s: %w", name, err)
		}
	}
	return write, read, nil
}

// reopen opens an end of a pipe anew, for the poller: as a description of its own,
// which does not block.
func reopen(f *os.File, mode int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // a pipe's end without data of its own
		}
	}
}

// startLogger starts the logger and waits until it is ready. It owns the pipes
// from then on, unless it fails.
func startLogger(at place, to target, pipes [2]*os.File) (*logger, error) {
	pairs, err := to.pairs()
	if err != nil {
		return nil, err
	}
	argv := []string{to.path}
	for _, pair := range pairs {
		argv = append(argv, pair[0], pair[1])
	}
	l := &logger{shim: at.shim, path: to.path, pipes: pipes, exited: make(chan struct{}), closed: make(chan struct{})}
	ready, told, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("logger %s: %w", to.path, err)
	}
	defer ready.Close()
	l.proc, err = at.shim.spawn(argv, []string{"CONTAINER_ID=" + at.container, "CONTAINER_NAMESPACE=" + at.shim.config.Namespace},
		[3]*os.File{pipes[0], pipes[1], told})
	_ = told.Close() // the logger has it
	if err != nil {
		return nil, fmt.Errorf("start logger %s: %w", to.path, err)
	}
	at.shim.watchers.Go(l.watch)
	if err := l.await(ready, to.scheme == schemeBinaryV2); err != nil {
		l.once.Do(func() { close(l.closed) })
		l.end(0)
		return nil, fmt.Errorf("logger %s: %w", to.path, err)
	}
	return l, nil
}

// spawn starts a program in a session of its own, as it may outlive the shim, with
// files as descriptors 3, 4 and 5, and none of the shim's.
func (s *Shim) spawn(argv, env []string, files [3]*os.File) (*sys.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: env, Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range files {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	s.spawning.RLock()
	defer s.spawning.RUnlock()
	var pid int
	err = sys.StartPlain(func() (err error) {
		pid, err = syscall.ForkExec(argv[0], argv, attr)
		return err
	})
	if err != nil {
		return nil, err
	}
	handle, err := sys.OpenProcess(pid) // an unreaped child keeps its pid
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, werr := unix.Wait4(pid, nil, 0, nil)
		return nil, errors.Join(err, werr)
	}
	s.known.add(pid)
	return handle, nil
}

// await waits until the logger closes its descriptor 5 or writes a byte to it. With
// strict only the byte will do.
func (l *logger) await(ready *os.File, strict bool) error {
	if err := ready.SetReadDeadline(time.Now().Add(loggerReady)); err != nil {
		return err
	}
	n, err := ready.Read(make([]byte, 1))
	switch {
	case n == 1:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("was not ready within %s", loggerReady)
	case strict:
		return errors.New("closed its file descriptor 5 without a byte, so it failed to start")
	}
	return nil
}

// watch reaps the logger. If it ends before its streams do, what comes is thrown
// away.
func (l *logger) watch() {
	defer close(l.exited)
	status, err := l.proc.Wait(context.Background())
	l.shim.known.remove(l.proc.PID())
	_ = l.proc.Close() // a descriptor without data
	select {
	case <-l.closed:
		return
	default:
	}
	for _, f := range l.pipes {
		if f == nil {
			continue
		}
		src, rerr := reopen(f, unix.O_RDONLY)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		l.drains.Go(func() { l.discard(src) })
	}
	if open := l.open(); open || err != nil {
		l.shim.config.Log.Error("logger ended before its container, whose output is dropped from now on",
			"logger", l.path, "status", exitStatus(status), "error", err)
	}
}

// discard reads a pipe to its end, or until close.
func (l *logger) discard(src *os.File) {
	defer src.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-l.closed:
			_ = src.SetReadDeadline(time.Unix(1, 0))
		case <-ended:
		}
	}()
	for {
		buffer := buffers.Get().(*[]byte)
		_, err := src.Read(*buffer)
		buffers.Put(buffer)
		if err != nil {
			return
		}
	}
}

// open tells whether somebody may still write to the logger.
func (l *logger) open() bool {
	for _, f := range l.pipes {
		if f != nil && poll(int(f.Fd()), 0)&unix.POLLHUP == 0 {
			return true
		}
	}
	return false
}

// unread tells whether there is something that the logger has not read.
func (l *logger) unread() bool {
	for _, f := range l.pipes {
		if f == nil {
			continue
		}
		if n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// settle waits until the logger has read everything, or the time has passed, and
// tells which.
func (l *logger) settle(until time.Time) bool {
	for look := settleLook; l.unread(); look = min(2*look, 16*settleLook) {
		if time.Now().After(until) {
			return false
		}
		if within(look, l.exited) {
			return true
		}
	}
	return true
}

// drain waits until the logger has read everything and ended; if it does not by
// itself, close makes it.
func (l *logger) drain(until time.Time) bool {
	all := l.settle(until)
	if left := time.Until(until); all && !l.open() {
		within(min(left, loggerGrace), l.exited)
	}
	return all
}

// close ends the logger. Twice is harmless.
func (l *logger) close() {
	l.once.Do(func() { close(l.closed) })
	l.end(loggerTerm)
	l.drains.Wait()
	closeAll(l.pipes[:])
}

// end ends the logger with SIGTERM, and after some time with SIGKILL.
func (l *logger) end(grace time.Duration) {
	if grace > 0 {
		_ = l.proc.Signal(unix.SIGTERM) // it may have ended
		if within(grace, l.exited) {
			return
		}
		l.shim.config.Log.Warn("logger does not heed SIGTERM, killing it", "logger", l.path, "after", grace)
	}
	_ = l.proc.Signal(unix.SIGKILL)
	<-l.exited
}
