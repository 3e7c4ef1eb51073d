package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/runtime/record"
)

// maxLog bounds the log, which lies in memory (the daemon's state directory).
const maxLog = 256 << 10

// newLog makes the log on standard error, which the daemon has pointed at the
// bundle's shim.log.
func newLog(debug bool) (*slog.Logger, *boundedFile) {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	out := &boundedFile{f: os.Stderr}
	log.L.Logger.SetOutput(out) // what ttrpc says
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})), out
}

// boundedFile is a file opened for append that is begun anew when it gets too
// long. What is not a regular file is left as it is.
type boundedFile struct {
	f    *os.File
	also atomic.Int32 // a descriptor that gets a copy of what it has room for; 0: none
}

// Write appends. That the log can't be cut is no reason not to write to it.
func (b *boundedFile) Write(p []byte) (int, error) {
	if info, err := b.f.Stat(); err == nil && info.Mode().IsRegular() && info.Size()+int64(len(p)) > maxLog {
		if b.f.Truncate(0) == nil {
			_, _ = b.f.WriteString("... older lines were dropped\n")
		}
	}
	if also := b.also.Load(); also != 0 {
		_, _ = unix.Write(int(also), p) // the daemon may be away, or not read
	}
	return b.f.Write(p)
}

// logFIFO is a fifo in the bundle from which other daemons read the shim's log.
const logFIFO = "log"

// follow lets the daemon have a copy of the log, through the fifo of a bundle.
func (b *boundedFile) follow(bundle string) error {
	fd, err := unix.Open(filepath.Join(bundle, logFIFO), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if b.also.CompareAndSwap(0, int32(fd)) {
		return nil
	}
	return errors.Join(replace(int(b.also.Load()), fd, unix.O_CLOEXEC), unix.Close(fd))
}

// move has the log go on in another bundle, where there is no other yet.
func (b *boundedFile) move(bundle string) error {
	fd, err := unix.Open(filepath.Join(bundle, record.ShimLogFile), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(replace(unix.Stdout, fd, 0), replace(unix.Stderr, fd, 0), unix.Close(fd))
}

// replace makes a descriptor mean what another one does, at once for everybody who
// uses it.
func replace(fd, with, flags int) error {
	if err := unix.Dup3(with, fd, flags); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	return nil
}
