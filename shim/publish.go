package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/sys"
)

// PublishBy makes a Publisher's Send for daemons that give no socket for events:
// it runs the daemon's binary with "publish" for each.
func (s *Shim) PublishBy(binary, address string) func(ctx context.Context, e *types.Envelope) error {
	return func(ctx context.Context, e *types.Envelope) error {
		input, err := proto.Marshal(e.Event)
		if err != nil {
			return err
		}
		argv := []string{binary, "--address", address, "publish", "--topic", e.Topic, "--namespace", e.Namespace}
		ended, err := s.run(ctx, argv, input)
		if err != nil {
			return fmt.Errorf("%s publish: %w", binary, err)
		}
		if ended.Exited() && ended.ExitStatus() == 0 {
			return nil
		}
		err = fmt.Errorf("%s publish ended with status %d", binary, exitStatus(ended))
		// It says so whether the daemon refuses the event or is away; only the latter
		// passes.
		conn, away := (&net.Dialer{}).DialContext(ctx, "unix", address)
		if away != nil {
			return err
		}
		_ = conn.Close() // nothing was said
		return status.Error(codes.Unknown, err.Error())
	}
}

// run runs a program with an input, in a session of its own. What it prints
// goes to the shim's log.
func (s *Shim) run(ctx context.Context, argv []string, input []byte) (unix.WaitStatus, error) {
	fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, os.NewSyscallError("memfd_create", err)
	}
	in := os.NewFile(uintptr(fd), "input")
	defer in.Close()
	if _, err := in.Write(input); err != nil {
		return 0, err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	handle, err := s.startGroup(argv, in)
	if err != nil {
		return 0, err
	}
	defer handle.Close()
	defer s.known.remove(handle.PID())
	ended, err := handle.Wait(ctx)
	if err == nil || ctx.Err() == nil {
		return ended, err
	}
	_ = unix.Kill(-handle.PID(), unix.SIGKILL) // not reaped yet
	late, cancel := cleaning(ctx)
	defer cancel()
	if _, werr := handle.Wait(late); werr != nil {
		return 0, fmt.Errorf("%w (killed, and still not gone)", err)
	}
	return 0, err
}

// startGroup starts a program so that no sweep takes it for a stray.
func (s *Shim) startGroup(argv []string, in *os.File) (*sys.Process, error) {
	s.spawning.RLock()
	defer s.spawning.RUnlock()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{in.Fd(), os.Stderr.Fd(), os.Stderr.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	handle, err := sys.OpenProcess(pid) // an unreaped child keeps its pid
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil) // ours, so that it is there to wait for
		return nil, err
	}
	s.known.add(pid)
	return handle, nil
}
