package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// consoleTime bounds the wait for a pty after the runtime said that it is done.
const consoleTime = 5 * time.Second

// maxSocketPath is what fits into a sockaddr_un, with the final zero.
const maxSocketPath = 107

// console is the receiving end of a terminal: a socket to which the runtime
// sends the master of the pty that it made for a process, then that master.
type console struct {
	path     string
	temp     string // directory made for the socket, if the bundle's path is too long
	listener *net.UnixListener
	master   *os.File
}

// listenConsole makes the socket in dir.
func listenConsole(dir string) (*console, error) {
	c, err := listenSocket(dir, "console.sock")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	return c, nil
}

// listenSocket makes a socket in dir, or where that path is too long in a
// temporary directory.
func listenSocket(dir, name string) (c *console, err error) {
	c = &console{path: filepath.Join(dir, name)}
	if len(c.path) > maxSocketPath {
		if c.temp, err = os.MkdirTemp("", "berth-console-"); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
		c.path = filepath.Join(c.temp, "s")
	}
	_ = os.Remove(c.path) // of an earlier try
	c.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.path, Net: "unix"})
	if err == nil {
		err = os.Chmod(c.path, 0o600)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return c, nil
}

// accept takes the pty. The runtime has connected and sent it before it ended,
// so this does not wait unless it failed to.
func (c *console) accept() (*os.File, error) {
	if err := c.listener.SetDeadline(time.Now().Add(consoleTime)); err != nil {
		return nil, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("the OCI runtime sent no terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(consoleTime)); err != nil {
		return nil, err
	}
	data, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, rights)
	if err != nil {
		return nil, fmt.Errorf("the OCI runtime sent no terminal: %w", err)
	}
	fd, err := onlyDescriptor(rights[:n])
	if err != nil {
		return nil, fmt.Errorf("the OCI runtime sent no terminal: %w", err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("terminal: %w", err), unix.Close(fd))
	}
	c.master = os.NewFile(uintptr(fd), "pty")
	c.unlisten()
	return c.master, nil
}

// onlyDescriptor returns the one descriptor of a control message.
func onlyDescriptor(rights []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return 0, err
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return 0, err
		}
		fds = append(fds, got...)
	}
	if len(fds) == 1 {
		return fds[0], nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // not what was asked for
	}
	return 0, fmt.Errorf("%d descriptors instead of one", len(fds))
}

// resize sets the size of the terminal.
func (c *console) resize(width, height uint32) error {
	if c.master == nil {
		return nil
	}
	conn, err := c.master.SyscallConn()
	if err != nil {
		return err
	}
	size := &unix.Winsize{Col: uint16(min(width, 0xffff)), Row: uint16(min(height, 0xffff))}
	cerr := conn.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("resize terminal to %dx%d: %w", width, height, err)
	}
	return nil
}

// unlisten removes the socket.
func (c *console) unlisten() {
	if c.listener != nil {
		_ = c.listener.Close() // unlinks its path; what stays goes with the bundle
		c.listener = nil
	}
	if c.temp != "" {
		_ = os.RemoveAll(c.temp)
		c.temp = ""
	}
}

// close gives up socket and terminal.
func (c *console) close() {
	c.unlisten()
	if c.master != nil {
		_ = c.master.Close() // hangs the terminal up, which is meant
	}
}

// duplicate makes another file of the same open description, for the poller.
func duplicate(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := conn.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
