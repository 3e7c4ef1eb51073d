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

// After a move of less than this the next one is a copy, even from pipe to pipe.
// A pipe has room for 16 pages, and a spliced line takes up one of its own; a
// written one joins the last.
const worthSplicing = 4 << 10

// buffers are for what is copied. A pump holds one only while it has data in
// hand, so idle streams cost none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// pump moves bytes from src to dst until src ends, both non-blocking where the
// kernel can tell of their readiness. Between pipes nothing is copied
// (splice(2)). Moving allocates no memory.
type pump struct {
	src, dst *os.File
	terminal bool          // src is a pty's master
	splice   bool          // both are pipes
	output   bool          // src is written by a container: it must not notice what happens to dst
	failed   func(error)   // told once of data that dst did not take
	holding  atomic.Bool   // data was taken from src and is not yet in dst
	done     chan struct{} // closed when run has ended

	from, to syscall.RawConn
	// What one move is about, for the functions that the poller calls. They are
	// bound once, as each binding is an allocation.
	move struct {
		src    int // descriptor, while it is held
		n      int
		err    error
		full   bool    // dst has no room
		buffer *[]byte // data in hand
		rest   []byte  // what of it is not yet in dst
	}
	onRead, onWrite, onSplice, onRoom func(fd uintptr) bool
	onDst                             func(fd uintptr)
}

// newPump makes a pump, which owns both files from now on.
func newPump(src, dst *os.File) (*pump, error) {
	p := &pump{src: src, dst: dst, done: make(chan struct{})}
	p.onRead, p.onWrite, p.onSplice, p.onRoom, p.onDst = p.readSome, p.writeSome, p.spliceSome, hasRoom, p.spliceTo
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
		var err error
		if p.splice && p.move.n >= worthSplicing {
			err = p.spliceOnce()
		} else {
			err = p.copyOnce()
		}
		if err != nil {
			return
		}
	}
}

// close ends the pump. Closing twice, or what was never read, is harmless.
func (p *pump) close() {
	_ = p.src.Close()
	_ = p.dst.Close()
}

// taken is the result of taking n bytes from src: an end of file, which a pty's
// master tells as EIO, is an error.
func taken(n int, err error) error {
	if err == nil && n == 0 {
		return io.EOF
	}
	return err
}

// copyOnce moves one buffer.
func (p *pump) copyOnce() error {
	m := &p.move
	err := p.from.Read(p.onRead)
	if m.buffer == nil {
		return errors.Join(err, os.ErrClosed)
	}
	if err == nil {
		err = taken(m.n, m.err)
	}
	if err == nil {
		m.rest = (*m.buffer)[:m.n]
		err = p.write()
	}
	buffers.Put(m.buffer)
	m.buffer, m.rest = nil, nil
	p.holding.Store(false)
	return err
}

// readSome takes what is there, up to a buffer; false waits for more.
func (p *pump) readSome(fd uintptr) bool {
	m := &p.move
	p.holding.Store(true)
	m.buffer = buffers.Get().(*[]byte)
	for {
		m.n, m.err = unix.Read(int(fd), *m.buffer)
		switch m.err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			buffers.Put(m.buffer)
			m.buffer = nil
			p.holding.Store(false)
			return false
		}
		return true
	}
}

// write puts the rest into dst, waiting for its reader.
func (p *pump) write() error {
	m := &p.move
	err := p.to.Write(p.onWrite)
	if err == nil {
		err = m.err
	}
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

// writeSome gives what dst takes; false waits for room.
func (p *pump) writeSome(fd uintptr) bool {
	m := &p.move
	for m.err = nil; len(m.rest) > 0; {
		n, err := unix.Write(int(fd), m.rest)
		switch err {
		case nil:
			m.rest = m.rest[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			m.err = err
			return true
		}
	}
	return true
}

// spliceOnce moves what is there from pipe to pipe.
func (p *pump) spliceOnce() error {
	m := &p.move
	if err := p.from.Read(p.onSplice); err != nil {
		return err
	}
	switch {
	case m.full:
		m.n = worthSplicing
		return p.to.Write(p.onRoom)
	case m.err == unix.EINVAL: // a file system that can't
		p.splice = false
		return nil
	}
	return taken(m.n, m.err)
}

// spliceSome holds dst and splices; false waits for data.
func (p *pump) spliceSome(fd uintptr) bool {
	m := &p.move
	m.src = int(fd)
	if err := p.to.Control(p.onDst); err != nil {
		m.err = err
	}
	// EAGAIN: nothing to take, or no room to put it.
	m.full = m.err == unix.EAGAIN && ready(m.src, unix.POLLIN)
	return m.err != unix.EAGAIN || m.full
}

// spliceTo is the system call.
func (p *pump) spliceTo(fd uintptr) {
	m := &p.move
	for {
		n, err := unix.Splice(m.src, nil, int(fd), nil, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if m.n, m.err = int(n), err; err != unix.EINTR {
			return
		}
	}
}

// hasRoom waits for room in dst.
func hasRoom(fd uintptr) bool { return ready(int(fd), unix.POLLOUT) }

// ready asks poll(2) without waiting.
func ready(fd int, events int16) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if err != unix.EINTR {
			return err != nil || n > 0
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
	waiting := 0
	err := p.from.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	// In this order: what was taken before the first look is held at the second.
	return err == nil && (waiting > 0 || p.holding.Load())
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
