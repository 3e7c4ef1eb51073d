package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Terminal is the terminal that a user sits at.
type Terminal struct{ console console.Console }

// OpenTerminal takes a file that is a terminal, such as standard input. It
// changes nothing of it yet.
func OpenTerminal(f *os.File) (*Terminal, error) {
	c, err := console.ConsoleFromFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s is not a terminal: %w", f.Name(), err)
	}
	return &Terminal{console: c}, nil
}

// IsTerminal tells whether a file is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := console.ConsoleFromFile(f)
	return err == nil
}

// Raw makes the terminal pass on every key as it is, ^C too, and write every
// byte as it comes. Restore must follow.
func (t *Terminal) Raw() error {
	if err := t.console.SetRaw(); err != nil {
		return err
	}
	// SetRaw leaves output processing on; the process's own terminal has done
	// that already.
	fd := int(t.console.Fd())
	state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		state.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(fd, unix.TCSETS, state)
	}
	if err != nil {
		return errors.Join(os.NewSyscallError("ioctl", err), t.Restore())
	}
	return nil
}

// Restore sets the terminal back to how it was at OpenTerminal.
func (t *Terminal) Restore() error { return t.console.Reset() }

// Follow gives the terminal's size to the process, now and whenever it changes,
// until ctx ends.
func (t *Terminal) Follow(ctx context.Context, p *Process) {
	// A size that does not arrive is not worth an error: the process may have
	// ended, and the next change brings the next try.
	t.Sizes(ctx, func(columns, rows uint32) { _ = p.Resize(ctx, columns, rows) })
}

// Size is the terminal's size.
func (t *Terminal) Size() (columns, rows uint32, err error) {
	size, err := t.console.Size()
	return uint32(size.Width), uint32(size.Height), err
}

// Sizes calls changed with the terminal's size, now and whenever it changes, until
// ctx ends.
func (t *Terminal) Sizes(ctx context.Context, changed func(columns, rows uint32)) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	defer signal.Stop(changes)
	for {
		if columns, rows, err := t.Size(); err == nil {
			changed(columns, rows)
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}
