package shim

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is spliced at once; a pipe holds as much.
const chunk = 64 << 10

// Less than this is copied even from pipe to pipe. A pipe has room for 16 pages,
// and a spliced line takes up one of its own; a written one joins the last.
const worthSplicing = 4 << 10

// buffers are for what is copied. A pump holds one only while it has data in
// hand, so idle streams cost none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// pump moves bytes from src to dst until src ends, both non-blocking where the
// kernel can tell of their readiness. Between pipes nothing is copied
// (splice(2)).
type pump struct {
	src, dst *os.File
	from, to syscall.RawConn
	terminal bool // src is a pty's master
	splice   bool
	output   bool          // src is written by a container: it must not notice what happens to dst
	failed   func(error)   // told once of data that dst did not take
	holding  atomic.Bool   // data was taken from src and is not yet in dst
	done     chan struct{} // closed when run has ended
}

// newPump makes a pump, which owns both files from now on.
func newPump(src, dst *os.File) (*pump, error) {
	p := &pump{src: src, dst: dst, done: make(chan struct{})}
	var err error
	if p.from, err = src.SyscallConn(); err == nil {
		p.to, err = dst.SyscallConn()
	}
	p.splice = isPipe(src) && isPipe(dst)
	return p, err
}

func isPipe(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// run moves until src has ended, dst takes no more, or either is closed. It
// closes both: the reader at dst sees the end of the stream, and a writer at
// src that nobody reads it.
func (p *pump) run() {
	defer close(p.done)
	defer p.close()
	for {
		move := p.copy
		if p.splice && p.waiting() >= worthSplicing {
			move = p.spliceOnce
		}
		if move() != nil {
			return
		}
	}
}

// waiting tells how many bytes there are to take from src.
func (p *pump) waiting() int {
	n := 0
	// Without an answer nothing is spliced, and copying finds out why.
	_ = p.from.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// close ends the pump. Closing twice, or what was never read, is harmless.
func (p *pump) close() {
	_ = p.src.Close()
	_ = p.dst.Close()
}

// ended tells an end of file, for a pty's master EIO, from "not yet".
func (p *pump) ended(n int, err error) error {
	switch {
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	}
	return nil
}

// copy moves one buffer.
func (p *pump) copy() error {
	var buffer *[]byte
	var n int
	var err error
	defer p.holding.Store(false)
	werr := p.from.Read(func(fd uintptr) bool {
		p.holding.Store(true)
		buffer = buffers.Get().(*[]byte)
		n, err = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), *buffer) })
		if err == unix.EAGAIN {
			buffers.Put(buffer)
			buffer = nil
			p.holding.Store(false)
			return false
		}
		return true
	})
	if buffer == nil {
		return errors.Join(werr, os.ErrClosed)
	}
	defer buffers.Put(buffer)
	if err := p.ended(n, errors.Join(werr, err)); err != nil {
		return err
	}
	err = p.write((*buffer)[:n])
	if err == nil || !p.output || errors.Is(err, os.ErrClosed) {
		return err
	}
	// A full disk under a log must not end the container by SIGPIPE.
	if p.failed != nil {
		p.failed(err)
		p.failed = nil
	}
	return nil
}

// write puts all of b into dst, waiting for its reader.
func (p *pump) write(b []byte) error {
	var err error
	werr := p.to.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			n, err = ignoringEINTR(func() (int, error) { return unix.Write(int(fd), b) })
			if err == unix.EAGAIN {
				return false
			}
			if err != nil {
				return true
			}
			b = b[n:]
		}
		return true
	})
	return errors.Join(werr, err)
}

// spliceOnce moves what is there from pipe to pipe.
func (p *pump) spliceOnce() error {
	var n int64
	var err error
	full := false
	rerr := p.from.Read(func(src uintptr) bool {
		cerr := p.to.Control(func(dst uintptr) {
			for {
				n, err = unix.Splice(int(src), nil, int(dst), nil, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
				if err != unix.EINTR {
					break
				}
			}
		})
		if cerr != nil {
			err = cerr
			return true
		}
		// EAGAIN: nothing to take, or no room to put it.
		full = err == unix.EAGAIN && ready(int(src), unix.POLLIN)
		return err != unix.EAGAIN || full
	})
	if rerr != nil {
		return rerr
	}
	if full {
		return p.to.Write(func(dst uintptr) bool { return ready(int(dst), unix.POLLOUT) })
	}
	if err == unix.EINVAL { // a file system that can't
		p.splice = false
		return nil
	}
	return p.ended(int(n), err)
}

// ready asks poll(2) without waiting.
func ready(fd int, events int16) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(fds, 0) })
	return err != nil || n > 0
}

func ignoringEINTR(do func() (int, error)) (int, error) {
	for {
		n, err := do()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// pending tells whether src has data that is not yet in dst.
func (p *pump) pending() bool {
	select {
	case <-p.done:
		return false
	default:
	}
	// In this order: what was taken before the first look is held at the second.
	return p.waiting() > 0 || p.holding.Load()
}

// Pauses of settle.
const (
	settleLook = time.Millisecond
	ptyQuiet   = 50 * time.Millisecond // a pty hands data on in the background
)

// settle waits until all that src has got is in dst, or the time has passed,
// and tells which. Once the process that writes has ended this makes its output
// complete, even if another process holds the stream open.
func (p *pump) settle(until time.Time) bool {
	var quiet time.Time
	for look := settleLook; ; look = min(2*look, 16*settleLook) {
		now := time.Now()
		switch {
		case p.pending():
			quiet = time.Time{}
		case !p.terminal:
			return true
		case quiet.IsZero():
			quiet = now
		case now.Sub(quiet) > ptyQuiet:
			return true
		}
		if now.After(until) {
			return false
		}
		if !p.wait(now.Add(look)) {
			continue
		}
		return true
	}
}

// wait waits until the pump has ended, or the time has passed, and tells which.
func (p *pump) wait(until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}
