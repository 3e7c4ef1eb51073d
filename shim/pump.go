package shim

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// buffers are for what is copied. A pump holds one only while it has data in
// hand, so idle streams cost none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// pump moves bytes from src to where they go until src ends: to dst, another file,
// or into a log. Files are non-blocking where the kernel can tell of their
// readiness. From pipe to pipe nothing is copied (splice.go). Moving allocates no
// memory.
type pump struct {
	src, dst *os.File // dst is nil for a log
	log      *formatter
	terminal bool         // src is a pty's master
	output   bool         // src is written by a container: it must not notice what happens to dst
	fifo     bool         // dst is a client's fifo, whose reader may go
	taps     *taps        // who else gets the output; nil: nobody can
	stream   stream       // which it is, for them
	notes    *slog.Logger // of what is lost; nil for an input
	told     bool         // that dst did not take something
	dir      string       // for the spill

	holding  atomic.Bool   // data was taken from src and is nowhere else yet
	stranded atomic.Bool   // all that is left is in the spill, and nobody reads dst
	done     chan struct{} // closed when run has ended
	closing  chan struct{} // closed by close
	once     sync.Once
	keep     *os.File // keeps what is in a fifo there once run has ended

	from, to syscall.RawConn
	splice   bool // from pipe to pipe
	spill    *spill
	// spillPause is how long to wait before the next look for a reader.
	spillPause time.Duration
	partial    time.Time // since when a line is incomplete
	alarm      time.Time // the deadline of src, for what has to be seen to by then
	width      width
	// What one move is about, for the functions that the poller calls. They are
	// bound once, as each binding is an allocation.
	move struct {
		src    int // descriptor, while it is held
		n      int
		err    error
		full   bool    // dst has no room
		buffer *[]byte // data in hand
		kept   int     // bytes at its start that were there before: an incomplete line
		rest   []byte  // what of it is not yet in dst
	}
	onRead, onWrite, onSplice, onRoom func(fd uintptr) bool
	onDst                             func(fd uintptr)
}

// newPump makes a pump between files, which owns both from now on.
func newPump(src, dst *os.File) (*pump, error) {
	p := &pump{src: src, dst: dst, done: make(chan struct{}), closing: make(chan struct{})}
	p.onRead, p.onWrite, p.onSplice, p.onRoom, p.onDst = p.readSome, p.writeSome, p.spliceSome, hasRoom, p.spliceTo
	var err error
	if p.from, err = src.SyscallConn(); err == nil && dst != nil {
		p.to, err = dst.SyscallConn()
	}
	p.splice = dst != nil && isPipe(src) && isPipe(dst)
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
	defer p.closeFiles()
	for {
		err := p.step()
		if err == nil {
			p.carry(p.move.n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = p.overdue()
		}
		if err != nil {
			break
		}
	}
	p.finish()
}

// step makes one move.
func (p *pump) step() error {
	switch {
	case p.spill != nil:
		return p.divert()
	case p.splice && p.move.n >= worthSplicing:
		return p.spliceOnce()
	}
	return p.copyOnce()
}

// finish sees to what is in hand when src has ended.
func (p *pump) finish() {
	switch {
	case p.log != nil:
		if m := &p.move; m.kept > 0 {
			p.log.rest((*m.buffer)[:m.kept])
			p.release(0)
		}
		p.log.file.release()
	case p.spill != nil:
		p.linger()
	}
	p.narrow()
	if p.fifo {
		p.keep = keepOpen(p.dst)
	}
	p.holding.Store(false)
}

// close ends the pump. Closing twice, or what was never read, is harmless.
func (p *pump) close() {
	p.once.Do(func() { close(p.closing) })
	p.closeFiles()
}

func (p *pump) closeFiles() {
	_ = p.src.Close()
	if p.dst != nil {
		_ = p.dst.Close()
	}
}

// taken is the result of taking n bytes from src: an end of file, which a pty's
// master tells as EIO, is an error.
func taken(n int, err error) error {
	if err == nil && n == 0 {
		return io.EOF
	}
	return err
}

// take reads what is there, up to a buffer. What was read is in the buffer behind
// what was kept.
func (p *pump) take() error {
	m := &p.move
	if err := p.from.Read(p.onRead); err != nil {
		return err
	}
	err := taken(m.n, m.err)
	if err != nil {
		p.release(m.kept)
		return err
	}
	p.taps.give(p.stream, (*m.buffer)[m.kept:m.kept+m.n])
	return nil
}

// release gives the buffer back, unless a line is kept in it.
func (p *pump) release(kept int) {
	m := &p.move
	if m.kept = kept; kept == 0 && m.buffer != nil {
		buffers.Put(m.buffer)
		m.buffer = nil
	}
	m.rest = nil
	p.holding.Store(kept > 0)
}

// copyOnce moves one buffer.
func (p *pump) copyOnce() error {
	if err := p.take(); err != nil {
		return err
	}
	m := &p.move
	if p.log != nil {
		p.enter()
		return nil
	}
	m.rest = (*m.buffer)[:m.n]
	err := p.write()
	p.release(0)
	return err
}

// enter makes entries of the log. The beginning of a line that has not ended yet
// is kept for a moment.
func (p *pump) enter() {
	m := &p.move
	data := (*m.buffer)[:m.kept+m.n]
	left := p.log.whole(data)
	begun := left < len(data) || m.kept == 0
	copy(*m.buffer, data[len(data)-left:])
	p.release(left)
	if left == 0 {
		return
	}
	if begun {
		p.partial = time.Now()
	}
	_ = p.alarmBy(p.partial.Add(partialTime)) // a pipe and a pty can
}

// overdue is called when the time of a read is over: for the rest of a line, to
// look for a reader, or how large the pipes should be.
func (p *pump) overdue() error {
	if err := p.setAlarm(time.Time{}); err != nil {
		return err
	}
	m := &p.move
	switch {
	case p.log == nil || m.kept == 0:
	case time.Since(p.partial) < partialTime-partialTime/10:
		if err := p.alarmBy(p.partial.Add(partialTime)); err != nil {
			return err
		}
	default:
		p.log.rest((*m.buffer)[:m.kept])
		p.release(0)
	}
	return p.look()
}

// setAlarm sets when the next read is to end though there is nothing; zero for
// never.
func (p *pump) setAlarm(at time.Time) error {
	p.alarm = at
	return p.src.SetReadDeadline(at)
}

// alarmBy sees to it that the next read ends then, or before.
func (p *pump) alarmBy(at time.Time) error {
	if !p.alarm.IsZero() && !p.alarm.After(at) {
		return nil
	}
	return p.setAlarm(at)
}

// readSome takes what is there, up to a buffer; false waits for more.
func (p *pump) readSome(fd uintptr) bool {
	m := &p.move
	p.holding.Store(true)
	if m.buffer == nil {
		m.buffer = buffers.Get().(*[]byte)
	}
	for {
		m.n, m.err = unix.Read(int(fd), (*m.buffer)[m.kept:])
		switch m.err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			p.release(m.kept)
			return false
		}
		m.n = max(m.n, 0)
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
	if p.fifo && err == unix.EPIPE {
		p.startSpill()
		p.spill.put(m.rest)
		return nil
	}
	if err == nil || !p.output || errors.Is(err, os.ErrClosed) {
		return err
	}
	// A full disk under a file must not end the container by SIGPIPE.
	if !p.told {
		p.told = true
		p.notes.Error("output lost", "path", p.dst.Name(), "error", err)
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

// Pauses of settle and drain.
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

// drain waits until the pump has ended, or has nothing left but what nobody reads,
// or the time has passed, and tells whether it was the last.
func (p *pump) drain(until time.Time) bool {
	for look := settleLook; ; look = min(2*look, 64*settleLook) {
		if p.stranded.Load() {
			return true
		}
		next := time.Now().Add(look)
		if next.After(until) {
			return p.wait(until)
		}
		if p.wait(next) {
			return true
		}
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
