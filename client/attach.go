package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"github.com/berthd/berth/api/berth/logs/v1"
	api "github.com/berthd/berth/api/berth/shim/v1"
	"github.com/berthd/berth/api/berth/shim/v1/shimttrpc"
	"github.com/berthd/berth/internal/attach"
)

// Attachment is a connection to the streams of a container's first process. It goes
// to the container's shim: that the daemon goes away is not noticed.
type Attachment struct {
	Terminal bool // the process has a terminal: all output is Run's out
	Input    bool // Write goes to the process

	container string
	conn      net.Conn
	in        *attach.Reader
	out       *attach.Writer
}

// CutOffError says that the shim has ended an attachment although the process runs
// on.
type CutOffError struct{ Container, Reason string }

// Error gives the reason.
func (e *CutOffError) Error() string {
	return fmt.Sprintf("attached to container %q: %s", e.Container, e.Reason)
}

// Attach joins the streams of a container's first process, with the output from now
// on, and with input also to send some, if the container has one for those who
// attach. NotFound: it does not run. FailedPrecondition: it has neither a log nor a
// terminal, or somebody else has its input.
func (c *Client) Attach(ctx context.Context, container string, input bool) (*Attachment, error) {
	at, err := c.Logs().Locate(ctx, &logs.LocateRequest{ContainerId: container})
	if err != nil {
		return nil, err
	}
	answer, err := askShim(ctx, at.GetSocket(), &api.AttachRequest{Id: container, Input: input})
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", answer.GetSocket())
	if err != nil {
		return nil, fmt.Errorf("attach to container %q: %w", container, err)
	}
	return &Attachment{
		Terminal: answer.GetTerminal(), Input: answer.GetInput(),
		container: container, conn: conn, in: attach.NewReader(conn), out: attach.NewWriter(conn),
	}, nil
}

// askShim asks a shim to be attached to.
func askShim(ctx context.Context, socket string, request *api.AttachRequest) (*api.AttachResponse, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the shim of container %q: %w", request.GetId(), err)
	}
	shim := ttrpc.NewClient(conn)
	defer shim.Close()
	answer, err := shimttrpc.NewStreamsClient(shim).Attach(ctx, request)
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return answer, nil
}

// Run gives the process's output to out and err until it has ended, and tells how.
// A *CutOffError: the shim gave up on this client, or is gone; the process may run
// on.
func (a *Attachment) Run(out, err io.Writer) (Exit, error) {
	for {
		kind, data, readErr := a.in.Read()
		if readErr != nil {
			if errors.Is(readErr, net.ErrClosed) {
				return Exit{}, readErr
			}
			return Exit{}, &CutOffError{a.container, fmt.Sprintf("the shim is gone (%v)", readErr)}
		}
		var writeErr error
		switch kind {
		case attach.Stdout:
			_, writeErr = out.Write(data)
		case attach.Stderr:
			_, writeErr = err.Write(data)
		case attach.Exit:
			status, at, decodeErr := attach.DecodeExit(data)
			return Exit{Status: status, At: at}, decodeErr
		case attach.Failure:
			return Exit{}, &CutOffError{a.container, string(data)}
		}
		if writeErr != nil {
			return Exit{}, fmt.Errorf("output of container %q: %w", a.container, writeErr)
		}
	}
}

// Write sends input to the process, and waits while it does not read.
func (a *Attachment) Write(data []byte) (int, error) {
	if !a.Input {
		return 0, fmt.Errorf("container %q takes no input: %w", a.container, errdefs.ErrFailedPrecondition)
	}
	if err := a.out.Write(attach.Input, data); err != nil {
		return 0, err
	}
	return len(data), nil
}

// EndInput ends the process's input. A terminal has no end.
func (a *Attachment) EndInput() error { return a.out.Write(attach.EndInput, nil) }

// Resize tells the process's terminal its size.
func (a *Attachment) Resize(columns, rows uint32) error {
	return a.out.Write(attach.Resize, attach.EncodeSize(columns, rows))
}

// Close leaves the process alone. Run then returns net.ErrClosed.
func (a *Attachment) Close() error { return a.conn.Close() }
