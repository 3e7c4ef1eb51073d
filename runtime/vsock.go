package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// vsockAddress reads CID:PORT.
func vsockAddress(text string) (cid, port uint32, err error) {
	c, p, ok := strings.Cut(text, ":")
	n, cerr := strconv.ParseUint(c, 10, 32)
	m, perr := strconv.ParseUint(p, 10, 32)
	if !ok || cerr != nil || perr != nil {
		return 0, 0, errors.New("no CID:PORT")
	}
	return uint32(n), uint32(m), nil
}

// dialVsock connects to a port of a virtual machine.
func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	limit := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		limit = max(time.Until(deadline), time.Millisecond)
	}
	timeout := unix.NsecToTimeval(limit.Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &timeout)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to vsock %d:%d: %w", cid, port, err), unix.Close(fd))
	}
	return &fileConn{os.NewFile(uintptr(fd), "vsock")}, nil
}

// fileConn is a connection of a family that package net does not know.
type fileConn struct{ *os.File }

// LocalAddr and RemoteAddr name nothing.
func (fileConn) LocalAddr() net.Addr  { return vsockName{} }
func (fileConn) RemoteAddr() net.Addr { return vsockName{} }

type vsockName struct{}

func (vsockName) Network() string { return "vsock" }
func (vsockName) String() string  { return "vsock" }

// hybridAnswer bounds what is read of the answer of a hybrid socket.
const hybridAnswer = 64

// dialHybrid connects to a port of a virtual machine behind a unix socket, which
// is asked for the port by a line and answers by one.
func dialHybrid(ctx context.Context, path string, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	}
	if err == nil {
		err = readHybrid(conn)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s port %d: %w", path, port, err), conn.Close())
	}
	return conn, nil
}

// readHybrid reads the answer byte by byte: what follows it is the shim's.
func readHybrid(conn net.Conn) error {
	var line []byte
	for one := make([]byte, 1); len(line) < hybridAnswer; {
		if _, err := conn.Read(one); err != nil {
			return err
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	if !strings.HasPrefix(string(line), "OK") {
		return fmt.Errorf("it answers %q", line)
	}
	return nil
}
