package shim

import "golang.org/x/sys/unix"

// chunk is how much is spliced at once; a pipe holds as much.
const chunk = widePipe

// After a move of less than this the next one is a copy, even where it could be
// spliced. A pipe has room for 16 pages, and a spliced line takes up one of its
// own; a written one joins the last.
const worthSplicing = 4 << 10

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
	case m.err == unix.EPIPE && p.fifo:
		p.startSpill()
		return nil
	}
	return taken(m.n, m.err)
}

// spliceSome holds dst and splices; false waits for data.
func (p *pump) spliceSome(fd uintptr) bool {
	m := &p.move
	m.src, m.full = int(fd), false
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

// ready asks poll(2) without waiting; an error counts as ready.
func ready(fd int, events int16) bool { return poll(fd, events) != 0 }

// poll asks poll(2) without waiting, and gives what it says.
func poll(fd int, events int16) int16 {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return unix.POLLNVAL
		}
		return fds[0].Revents
	}
}
