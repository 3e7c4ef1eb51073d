package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
)

// TestMethod gives errors their code and survives a panic.
func TestMethod(t *testing.T) {
	b := newBench(t, "true")
	call := func(do func(context.Context, *task.StateRequest) (*task.StateResponse, error)) error {
		var m ttrpc.Method = method(b.Shim, "State", do)
		_, err := m(t.Context(), func(any) error { return nil })
		return err
	}
	err := call(func(context.Context, *task.StateRequest) (*task.StateResponse, error) { panic("oops") })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "State: panic: oops") {
		t.Error(err)
	}
	for _, k := range kinds {
		err := call(func(context.Context, *task.StateRequest) (*task.StateResponse, error) { return nil, k.err })
		if status.Code(err) != k.code {
			t.Errorf("%v: %s, want %s", k.err, status.Code(err), k.code)
		}
	}
}

// TestVersions serves both versions of the API, and leaves when told.
func TestVersions(t *testing.T) {
	b := newBench(t, "true")
	server, err := NewServer(b.Shim)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("@berth-shim-test-%d", os.Getpid())
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	last := false
	served := make(chan error)
	go func() { served <- server.Serve(t.Context(), l, func() { last = true }) }()
	conn, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	for _, service := range serviceNames {
		answer := &task.ConnectResponse{}
		if err := client.Call(b.ctx(), service, "Connect", &task.ConnectRequest{Id: "c"}, answer); err != nil || int(answer.ShimPid) != os.Getpid() {
			t.Errorf("%s: %v, %v", service, answer, err)
		}
	}
	err = client.Call(b.ctx(), serviceNames[0], "Shutdown", &task.ShutdownRequest{}, &emptypb.Empty{})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Error(err)
	}
	if err := <-served; err != nil || !last {
		t.Error(err, last)
	}
}

// TestForeignPeer is refused at the door.
func TestForeignPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	b := newBench(t, "true")
	server, err := NewServer(b.Shim)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("@berth-shim-peer-%d", os.Getpid())
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func(uid int) error {
		dialed := make(chan error)
		go func() {
			// Of this thread alone, which ends with the goroutine.
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				dialed <- errno
				return
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
				defer unix.Close(fd)
			}
			dialed <- err
		}()
		if err := <-dialed; err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _, err = server.Handshake(t.Context(), conn)
		return err
	}
	if err := connect(65534); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "user 65534") {
		t.Error(err)
	}
	if err := connect(os.Geteuid()); err != nil {
		t.Error(err)
	}
}
