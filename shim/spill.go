package shim

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// spillSize bounds what is kept of an output stream whose reader has gone, in
// bytes.
const spillSize = 16 << 20

// The pauses between looks for a new reader double from the first to the last.
const (
	firstLook = 5 * time.Millisecond
	lastLook  = 250 * time.Millisecond
	// A fifo that has no name any more can hardly get a reader.
	lastLookUnnamed = 10 * time.Second
)

// spill keeps, in order, what a container writes while nobody reads its fifo. It
// is a file without a name in the process's directory, written in a circle. What
// comes when it is full is dropped: what is there already was written before.
type spill struct {
	file     *os.File // nil: it could not be made
	from     int64    // where the oldest byte is, counted from the beginning of time
	to       int64    // where the next one goes
	dropped  int64
	onLosing func(error)
}

// newSpill makes a spill in dir. If that fails, everything is dropped.
func newSpill(dir string, onLosing func(error)) *spill {
	s := &spill{onLosing: onLosing}
	f, err := os.CreateTemp(dir, ".spill-")
	if err == nil {
		if err = os.Remove(f.Name()); err != nil {
			_ = f.Close() // empty
			f = nil
		}
	}
	if err != nil {
		s.lose(0, fmt.Errorf("make a file to keep it: %w", err))
	}
	s.file = f
	return s
}

// put keeps what there is room for.
func (s *spill) put(data []byte) {
	for len(data) > 0 {
		n := min(int64(len(data)), spillSize-(s.to-s.from), spillSize-s.to%spillSize)
		if n == 0 || s.file == nil {
			s.lose(len(data), fmt.Errorf("%d bytes are kept, more are not", s.to-s.from))
			return
		}
		written, err := s.file.WriteAt(data[:n], s.to%spillSize)
		s.to += int64(written)
		data = data[written:]
		if err != nil {
			s.lose(len(data), err)
			return
		}
	}
}

func (s *spill) lose(n int, err error) {
	if s.onLosing != nil {
		s.onLosing(err)
		s.onLosing = nil
	}
	s.dropped += int64(n)
}

// peek reads the oldest bytes without taking them; none at the end.
func (s *spill) peek(buffer []byte) ([]byte, error) {
	n := min(int64(len(buffer)), s.to-s.from, spillSize-s.from%spillSize)
	if n == 0 {
		return nil, nil
	}
	read, err := s.file.ReadAt(buffer[:n], s.from%spillSize)
	if int64(read) == n {
		err = nil
	}
	return buffer[:read], err
}

// took takes the oldest bytes away.
func (s *spill) took(n int) { s.from += int64(n) }

func (s *spill) close() {
	if s.file != nil {
		_ = s.file.Close() // it has no name
	}
}

// startSpill begins to keep the output, as the reader has gone.
func (p *pump) startSpill() {
	if p.spill != nil {
		return
	}
	p.spill = newSpill(p.dir, func(err error) {
		p.notes.Warn("output is being dropped, nobody reads it", "path", p.dst.Name(), "error", err)
	})
	p.spillPause = firstLook
}

// endSpill goes back to passing the output on, or gives up what is kept.
func (p *pump) endSpill() {
	s := p.spill
	p.spill = nil
	s.close()
	if lost := s.dropped + s.to - s.from; lost > 0 {
		p.notes.Warn("output was not read and is lost", "path", p.dst.Name(), "lost_bytes", lost)
	}
	p.move.n = 0
}

// divert makes one move while there is a spill: to a reader, if there is one now;
// else from src into the spill. A reader that is there, however slow, is waited
// for: then src is not read.
func (p *pump) divert() error {
	if p.hasReader() {
		return p.deliver()
	}
	if err := p.setAlarm(time.Now().Add(p.spillPause)); err != nil {
		return err
	}
	p.lookLater()
	if err := p.take(); err != nil {
		return err
	}
	p.spill.put((*p.move.buffer)[:p.move.n])
	p.release(0)
	return nil
}

// lookLater makes the pause before the next look for a reader longer.
func (p *pump) lookLater() {
	longest := lastLook
	var st unix.Stat_t
	err := p.to.Control(func(fd uintptr) {
		if unix.Fstat(int(fd), &st) == nil && st.Nlink == 0 {
			longest = lastLookUnnamed
		}
	})
	if err != nil {
		return // closed, which ends the pump
	}
	p.spillPause = min(2*p.spillPause, longest)
}

// hasReader tells whether somebody has the fifo open for reading.
func (p *pump) hasReader() bool {
	answer := int16(unix.POLLERR)
	err := p.to.Control(func(fd uintptr) { answer = poll(int(fd), 0) })
	return err == nil && answer&unix.POLLERR == 0
}

// deliver gives the reader what was kept, until that is all or the reader has gone
// again.
func (p *pump) deliver() error {
	if err := p.setAlarm(time.Time{}); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	m := &p.move
	for {
		data, err := p.spill.peek(*buffer)
		if err != nil {
			p.spill.lose(int(p.spill.to-p.spill.from), err)
			p.spill.from = p.spill.to
		}
		if len(data) == 0 {
			p.endSpill()
			return p.look()
		}
		m.rest = data
		err = p.to.Write(p.onWrite)
		p.spill.took(len(data) - len(m.rest))
		m.rest = nil
		if err != nil {
			return err
		}
		if m.err == unix.EPIPE {
			p.spillPause = firstLook
			return nil
		}
		if m.err != nil {
			return m.err
		}
	}
}

// linger keeps what was spilled, once src has ended, for a reader until close.
func (p *pump) linger() {
	timer := time.NewTimer(p.spillPause)
	defer timer.Stop()
	for p.spill != nil {
		if p.hasReader() {
			p.stranded.Store(false)
			if p.deliver() != nil {
				break
			}
			continue
		}
		p.stranded.Store(true)
		p.lookLater()
		timer.Reset(p.spillPause)
		select {
		case <-timer.C:
			continue
		case <-p.closing:
		}
		break
	}
	if p.spill != nil {
		p.endSpill()
	}
}

// keepOpen opens a fifo for reading by the end that f is, so that what is in it
// stays when that is closed; nil if that fails.
func keepOpen(f *os.File) *os.File {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	var keep *os.File
	err = conn.Control(func(fd uintptr) { keep, _ = openEnd(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY) })
	if err != nil {
		return nil
	}
	return keep
}
