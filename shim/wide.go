package shim

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A stream that carries much has larger pipes for as long as it does: who writes,
// who moves and who reads then wait for each other less often. They are not made
// large from the start, since the kernel counts what all pipes of a user may hold,
// whether it is in use or not: beyond 64 MiB
// (/proc/sys/fs/pipe-user-pages-soft) processes of that user that lack
// CAP_SYS_RESOURCE, as those of containers do, get pipes of two pages.
const (
	widePipe  = 256 << 10
	wideAbove = 1 << 20 // bytes carried within wideTime
	wideTime  = time.Second
)

// width is how large the pipes of a pump are, and how much it carries.
type width struct {
	src, dst int       // what the pipe held before it was made larger; 0: it was not
	wide     bool      // one of them was
	carried  int       // bytes since begun
	begun    time.Time // of the time that is looked at
	never    bool      // the kernel refuses, or there is nothing to make larger
}

// carry counts what was moved, and makes the pipes larger when that is much.
func (p *pump) carry(n int) {
	w := &p.width
	if w.carried += n; w.carried < wideAbove || w.wide || w.never {
		return
	}
	now := time.Now()
	if now.Sub(w.begun) > wideTime {
		w.carried, w.begun = 0, now
		return
	}
	w.src, w.dst = widen(p.from), widen(p.to)
	w.carried, w.begun = 0, now
	w.wide = w.src > 0 || w.dst > 0
	w.never = !w.wide || p.alarmBy(now.Add(wideTime)) != nil
	if w.never {
		p.narrow()
	}
}

// look gives larger pipes back unless the stream still carries much, which is
// looked at again later.
func (p *pump) look() error {
	w := &p.width
	if !w.wide {
		return nil
	}
	if now := time.Now(); now.Sub(w.begun) >= wideTime {
		if w.carried < wideAbove {
			p.narrow()
		}
		w.carried, w.begun = 0, now
		if !w.wide {
			return nil
		}
	}
	return p.alarmBy(w.begun.Add(wideTime))
}

// narrow makes the pipes as they were. One that holds more than that stays until
// the next look.
func (p *pump) narrow() {
	w := &p.width
	if w.src > 0 && resizePipe(p.from, w.src) != unix.EBUSY {
		w.src = 0
	}
	if w.dst > 0 && resizePipe(p.to, w.dst) != unix.EBUSY {
		w.dst = 0
	}
	w.wide = w.src > 0 || w.dst > 0
}

// widen makes a pipe larger and tells what it held before; 0 if it is none, is
// large already, or may not be larger.
func widen(conn syscall.RawConn) (before int) {
	if conn == nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) { before, _ = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
	if before <= 0 || before >= widePipe || resizePipe(conn, widePipe) != nil {
		return 0
	}
	return before
}

func resizePipe(conn syscall.RawConn, size int) error {
	err := os.ErrClosed
	cerr := conn.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size) })
	if cerr != nil {
		return cerr
	}
	return err
}
