package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotChild is what Wait returns for a process that ended, or lives, but is
// not ours to wait for.
var ErrNotChild = errors.New("not a child of this process")

// Process is a handle on one process. It goes on meaning that process when the
// pid is used again: it holds a pidfd (since Linux 5.3), or where there is
// none, the start time. Waiting parks a goroutine and holds no thread.
type Process struct {
	pid   int
	start uint64
	fd    *os.File // nil without pidfds
}

// The pauses between looks at a process without a pidfd: they double from the
// first to the last.
const (
	pollFirst = 5 * time.Millisecond
	pollLast  = 100 * time.Millisecond
)

// OpenProcess makes a handle on the process that has the pid now. The caller
// must know that it is the one it means: because it is an unreaped child, or by
// comparing StartTime afterwards. No such process is os.ErrProcessDone.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // before 5.10 there is no such flag
		if fd, err = unix.PidfdOpen(pid, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	return newProcess(pid, fd, err)
}

// newProcess makes the handle from what pidfd_open answered.
func newProcess(pid, fd int, err error) (*Process, error) {
	p := &Process{pid: pid}
	switch {
	case err == nil:
		p.fd = os.NewFile(uintptr(fd), "pidfd")
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // old kernel, or a seccomp filter that predates pidfds
	default:
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	stat, err := ReadStat(pid)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.start = stat.StartTime
	return p, nil
}

// PID returns the process's id.
func (p *Process) PID() int { return p.pid }

// StartTime returns when the process started, in clock ticks since boot.
func (p *Process) StartTime() uint64 { return p.start }

// Exited blocks until the process has ended, be it a zombie or gone, and does
// not reap it. It works for any process. The error is that of ctx. One caller
// at a time may be in Exited or Wait.
func (p *Process) Exited(ctx context.Context) error {
	if p.fd == nil {
		return p.poll(ctx)
	}
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	if err := p.fd.SetReadDeadline(time.Time{}); err != nil {
		return p.poll(ctx) // this kernel's pidfds can't be in an epoll set
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = p.fd.SetReadDeadline(time.Unix(1, 0)) // a past deadline wakes the reader
	})
	err = conn.Read(func(fd uintptr) bool { return readable(int(fd)) })
	if !stop() {
		<-woken // so that it can't wake the next caller
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// readable tells whether a read of the descriptor would not block.
func readable(fd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}

// poll is Exited without a pidfd.
func (p *Process) poll(ctx context.Context) error {
	pause := pollFirst
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			pause = min(2*pause, pollLast)
			timer.Reset(pause)
		}
	}
	return ctx.Err()
}

// Peek blocks until the process, a child of this one, has ended, and tells how.
// It does not reap it: the status is there for somebody else until Wait is
// called. ErrNotChild if somebody else has it or has reaped it.
func (p *Process) Peek(ctx context.Context) (unix.WaitStatus, error) {
	if err := p.Exited(ctx); err != nil {
		return 0, err
	}
	for pause := pollFirst; ; {
		var info childInfo
		err := unix.Waitid(unix.P_PID, p.pid, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case err == unix.EINTR:
		case err == unix.ECHILD:
			return 0, fmt.Errorf("wait for process %d: %w", p.pid, ErrNotChild)
		case err != nil:
			return 0, fmt.Errorf("wait for process %d: %w", p.pid, err)
		case info.pid != 0:
			return info.waitStatus(), nil
		default: // its tracer has it
			if status, ok := p.ExitStatus(); ok {
				return status, nil
			}
			if err := held(ctx, &pause); err != nil {
				return 0, err
			}
		}
	}
}

// childInfo is siginfo_t as waitid(2) fills it in on 64-bit machines.
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// The values of si_code for a child that has ended (sigaction(2)).
const (
	cldExited = 1
	cldDumped = 3
)

// waitStatus gives the status as wait4(2) does.
func (i childInfo) waitStatus() unix.WaitStatus {
	switch i.code {
	case cldExited:
		return unix.WaitStatus(i.status&0xff) << 8
	case cldDumped:
		return unix.WaitStatus(i.status&0x7f) | 0x80
	}
	return unix.WaitStatus(i.status & 0x7f)
}

// Wait blocks until the process, a child of this one, has ended, reaps it and
// tells how it ended. ErrNotChild if somebody else has it or has reaped it.
func (p *Process) Wait(ctx context.Context) (unix.WaitStatus, error) {
	if err := p.Exited(ctx); err != nil {
		return 0, err
	}
	for pause := pollFirst; ; {
		var status unix.WaitStatus
		got, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err == unix.ECHILD:
			return 0, fmt.Errorf("wait for process %d: %w", p.pid, ErrNotChild)
		case err != nil:
			return 0, fmt.Errorf("wait for process %d: %w", p.pid, err)
		case got != 0:
			return status, nil
		default:
			if err := held(ctx, &pause); err != nil {
				return 0, err
			}
		}
	}
}

// held waits for a while. A child that has ended and can't be waited for has a
// tracer, such as strace, or criu that has dumped it: first that one is told how it
// ended, and nothing tells when it has heard.
func held(ctx context.Context, pause *time.Duration) error {
	timer := time.NewTimer(*pause)
	defer timer.Stop()
	*pause = min(2**pause, pollLast)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Alive tells whether the process runs, which a zombie does not.
func (p *Process) Alive() bool {
	stat, err := ReadStat(p.pid)
	return err == nil && stat.StartTime == p.start && !stat.Dead()
}

// Signal sends a signal to the process. If it has been reaped the error is
// os.ErrProcessDone; a signal to a zombie is lost and no error.
func (p *Process) Signal(sig unix.Signal) error {
	var err error
	if p.fd != nil {
		conn, cerr := p.fd.SyscallConn()
		if cerr != nil {
			return fmt.Errorf("signal process %d: %w", p.pid, cerr)
		}
		cerr = conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		if cerr != nil {
			return fmt.Errorf("signal process %d: %w", p.pid, cerr)
		}
	} else if stat, serr := ReadStat(p.pid); serr != nil || stat.StartTime != p.start {
		err = unix.ESRCH
	} else {
		err = unix.Kill(p.pid, sig)
	}
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, os.ErrProcessDone)
	}
	if err != nil {
		return fmt.Errorf("signal process %d with %d: %w", p.pid, int(sig), err)
	}
	return nil
}

// Close gives up the handle. Whoever blocks in Exited or Wait gets an error.
func (p *Process) Close() error {
	if p.fd == nil {
		return nil
	}
	return p.fd.Close()
}
