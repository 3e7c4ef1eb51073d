package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
)

// attachBuffer is how much input is read at once, in bytes.
const attachBuffer = 32 << 10

func (a *app) attachCommand() *cobra.Command {
	var noInput bool
	cmd := &cobra.Command{
		Use:   "attach [--no-stdin] CONTAINER",
		Short: "See what a container in the background prints from now on, and send it input",
		Long: "See what a container in the background prints from now on. Any number may. If it was run with -i, one of them\n" +
			"sends it input; what was printed before is in `berth logs`.\n\n" +
			"At a terminal ctrl-p ctrl-q leaves the container alone again, elsewhere ^C does. It is not noticed when the\n" +
			"daemon goes away or comes back meanwhile.\n\n" +
			"Exit status: that of the container; 0 after ctrl-p ctrl-q; 125 if berth failed.",
		Args:              exactArgs(1, "one container"),
		Annotations:       map[string]string{ownAnnotation: ""},
		ValidArgsFunction: first(a.completeContainers(statusRunning)),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.attach(ctx, c, refs[0], !noInput) })
		},
	}
	cmd.Flags().BoolVar(&noInput, "no-stdin", false, "send no input")
	return cmd
}

func (a *app) attach(ctx context.Context, c *client.Client, ref string, input bool) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	at, err := c.Attach(ctx, container.ID(), input)
	if errdefs.IsNotFound(err) {
		return hint(fmt.Errorf("container %q does not run", container.ID()), "`berth start %s` runs it; `berth logs %s` has what it printed", container.ID(), container.ID())
	}
	if errdefs.IsFailedPrecondition(err) {
		return hint(err, "without input, `berth attach --no-stdin %s`; `berth logs -f %s` follows its log", container.ID(), container.ID())
	}
	if errors.Is(err, fs.ErrPermission) {
		return hint(err, "attach talks to the container's shim itself, which lets in only the daemon's own user: run it as root")
	}
	if err != nil {
		return err
	}
	defer at.Close()
	v := &visit{app: a, at: at, left: make(chan struct{})}
	exit, err := v.live(ctx)
	switch {
	case err == errLeft:
		fmt.Fprintf(a.err, "berth: left container %q, which runs on\n", container.ID())
		return nil
	case err != nil:
		return hint(err, "`berth ps` tells whether it runs; `berth logs -f %s` follows its log", container.ID())
	}
	return exited(exit)
}

// errLeft says that the user has left a container by the keys for that.
var errLeft = errors.New("left")

// visit is an attachment at berth's own streams.
type visit struct {
	app  *app
	at   *client.Attachment
	left chan struct{} // closed by the keys
}

// live passes everything on until the container has ended, the user has left, or
// ctx has.
func (v *visit) live(ctx context.Context) (client.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if v.at.Terminal && v.at.Input && client.IsTerminal(v.app.in) {
		restore, err := v.takeTerminal(ctx)
		if err != nil {
			return client.Exit{}, err
		}
		defer restore()
	}
	if v.at.Input {
		go v.feed() // a read of standard input can't be ended
	}
	type end struct {
		exit client.Exit
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		exit, err := v.at.Run(v.app.out, v.app.err)
		ended <- end{exit, err}
	}()
	select {
	case e := <-ended:
		return e.exit, e.err
	case <-v.left:
	case <-ctx.Done():
	}
	_ = v.at.Close() // ends Run
	if e := <-ended; e.err == nil {
		return e.exit, nil // it was faster
	} else if !errors.Is(e.err, net.ErrClosed) && ctx.Err() == nil {
		return e.exit, e.err
	}
	if ctx.Err() != nil {
		return client.Exit{Status: statusSignalBase + uint32(unix.SIGINT)}, nil
	}
	return client.Exit{}, errLeft
}

// takeTerminal gives the user's terminal to the container: keys as they are, and
// its size.
func (v *visit) takeTerminal(ctx context.Context) (restore func(), err error) {
	terminal, err := client.OpenTerminal(v.app.in)
	if err != nil {
		return nil, err
	}
	if err := terminal.Raw(); err != nil {
		return nil, fmt.Errorf("set the terminal up: %w", err)
	}
	v.app.raw.Store(true)
	// A size that does not arrive is Run's to tell of. The first is a change in any
	// case, so that the program draws its screen anew, and comes ahead of any input.
	if columns, rows, err := terminal.Size(); err == nil && rows > 1 {
		_ = v.at.Resize(columns, rows-1)
		_ = v.at.Resize(columns, rows)
	}
	ctx, cancel := context.WithCancel(ctx)
	following := make(chan struct{})
	go func() {
		defer close(following)
		terminal.Sizes(ctx, func(columns, rows uint32) { _ = v.at.Resize(columns, rows) })
	}()
	return func() {
		cancel()
		<-following
		_ = terminal.Restore() // fails only if the terminal has gone
		v.app.raw.Store(false)
	}, nil
}

// feed sends berth's input to the container, and its end unless it is a terminal's.
func (v *visit) feed() {
	keys := &leaveKeys{}
	buffer := make([]byte, attachBuffer)
	for {
		n, err := v.app.in.Read(buffer)
		data := buffer[:n]
		if v.app.raw.Load() {
			var leave bool
			if data, leave = keys.filter(data); leave {
				_, _ = v.at.Write(data) // what was typed before
				close(v.left)
				return
			}
		}
		if len(data) > 0 {
			if _, err := v.at.Write(data); err != nil {
				return // the shim has gone: Run tells
			}
		}
		if errors.Is(err, io.EOF) {
			_ = v.at.EndInput()
		}
		if err != nil {
			return
		}
	}
}

// The keys by which a user leaves: ctrl-p ctrl-q.
const (
	ctrlP = 'p' & 0x1f
	ctrlQ = 'q' & 0x1f
)

// leaveKeys finds the keys in what is typed.
type leaveKeys struct{ half bool }

// filter gives what goes to the container: a ctrl-p only together with what
// follows it.
func (k *leaveKeys) filter(typed []byte) (out []byte, leave bool) {
	for _, c := range typed {
		switch {
		case k.half && c == ctrlQ:
			return out, true
		case k.half && c == ctrlP:
			out = append(out, c)
			continue
		case k.half:
			out = append(out, ctrlP)
		}
		if k.half = c == ctrlP; !k.half {
			out = append(out, c)
		}
	}
	return out, false
}
