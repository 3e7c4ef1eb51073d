// Package socket owns how the daemon comes to listen on a unix socket: the
// directory, a stale file in the way, and who may connect. What is spoken there
// is its callers' matter.
package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dirMode is that of a directory made for a socket: the daemon's group may go
// through it, since it may be given the socket.
const dirMode = 0o770

// probeTimeout bounds the question whether somebody listens already. A unix
// socket answers at once unless its backlog is full.
const probeTimeout = 2 * time.Second

// Options say who may connect.
type Options struct {
	Mode     fs.FileMode // of the socket file
	UID, GID int         // its owner
}

// Listener is a listening socket that removes its file when it is closed.
type Listener struct {
	net.Listener
	path string
	file os.FileInfo
}

// Listen makes the socket at path and its directory if that is missing. A
// socket file that nobody listens on is replaced; one that somebody does is
// AlreadyExists, and anything else in the way is FailedPrecondition. Nobody can
// connect before mode and owner are set.
func Listen(path string, o Options) (*Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := bind(path, o)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// lock keeps others that use this package from looking at, making or removing
// sockets in dir at the same time.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
	}
}

// clearStale removes a socket file on which, provably, nobody listens.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("a file that is no socket is in the way; remove it or choose another address: %w", errdefs.ErrFailedPrecondition)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		c.Close()
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("can't tell whether another process listens there: %w", err)
	}
	return fmt.Errorf("another process listens there: %w", errdefs.ErrAlreadyExists)
}

// bind sets mode and owner between bind and listen: until then a connect is
// refused.
func bind(path string, o Options) (_ *Listener, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // the listener has a duplicate
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := os.Lchown(path, o.UID, o.GID); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, o.Mode); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: l, path: path, file: info}, nil
}

// Close stops listening and removes the socket file, unless another process has
// put its own there.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	unlock, lockErr := lock(filepath.Dir(l.path))
	if lockErr != nil {
		if errors.Is(lockErr, fs.ErrNotExist) {
			return err
		}
		return errors.Join(err, lockErr)
	}
	defer unlock()
	if now, statErr := os.Lstat(l.path); statErr != nil || !os.SameFile(now, l.file) {
		return err
	}
	return errors.Join(err, os.Remove(l.path))
}
