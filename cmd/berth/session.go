package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
)

// endTimeout bounds what has to be done once a process has ended.
const endTimeout = 30 * time.Second

// drainTimeout bounds the wait for output once the daemon has said that all of
// it is passed on.
const drainTimeout = 10 * time.Second

// outputGrace is how long a process has to end by itself once its output has
// nowhere to go.
const outputGrace = 2 * time.Second

// session is a process in the foreground: berth's streams, terminal and signals
// are its.
type session struct {
	app      *app
	proxy    *proxy
	stdio    *client.Stdio
	terminal *client.Terminal // nil: berth's streams are passed on as they are
	failed   chan error       // what berth can't write to
}

// afterwards is a context for what has to happen although berth was told to
// end.
func afterwards() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), endTimeout)
}

// checkTerminal refuses early what can't work: input from a terminal that is
// none.
func (a *app) checkTerminal(interactive, tty bool) error {
	if interactive && tty && !client.IsTerminal(a.in) {
		return hint(errors.New("-t with -i needs a terminal, and standard input is none"), "leave out -t")
	}
	return nil
}

// newSession makes the streams for a process named id.
func (a *app) newSession(c *client.Client, p *proxy, id string, interactive, tty bool) (*session, error) {
	s := &session{app: a, proxy: p, failed: make(chan error, 1)}
	streams := client.Streams{Out: a.out, Err: a.err, Failed: func(err error) {
		select {
		case s.failed <- err:
		default: // said already
		}
	}}
	if interactive {
		streams.In = a.in
	}
	if tty {
		streams.Err = nil
		if client.IsTerminal(a.in) {
			terminal, err := client.OpenTerminal(a.in)
			if err != nil {
				return nil, err
			}
			s.terminal = terminal
		}
	}
	var err error
	s.stdio, err = c.NewStdio(id, streams)
	return s, err
}

// run starts the process, lives with it, and when it has ended, deletes it. What
// fails once the process runs is said, but the exit counts.
func (s *session) run(p *client.Process) (client.Exit, error) {
	if s.terminal != nil {
		if err := s.terminal.Raw(); err != nil {
			return client.Exit{}, fmt.Errorf("set the terminal up: %w", err)
		}
		s.app.raw.Store(true)
		defer func() {
			_ = s.terminal.Restore() // fails only if the terminal has gone
			s.app.raw.Store(false)
		}()
	}
	s.proxy.start()
	exits, err := p.Launch(s.proxy.ctx, context.Background())
	if err == nil {
		err = s.proxy.attach(p)
	}
	if err != nil {
		s.proxy.attach(nil)
		return client.Exit{}, errors.Join(err, p.Discard(context.Background()))
	}
	exit := s.live(p, exits)
	if exit.Err != nil {
		return exit, exit.Err
	}
	ctx, cancel := afterwards()
	defer cancel()
	if _, err := p.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		s.say(err)
	}
	drainCtx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := s.stdio.Drain(drainCtx); err != nil {
		s.say(err)
	}
	return exit, nil
}

// live passes sizes and signals on until the process ends.
func (s *session) live(p *client.Process, exits <-chan client.Exit) client.Exit {
	defer s.proxy.attach(nil)
	ctx, cancel := context.WithCancel(context.Background())
	following := make(chan struct{})
	defer func() { cancel(); <-following }()
	go func() {
		defer close(following)
		if s.terminal != nil {
			s.terminal.Follow(ctx, p)
		}
	}()
	for {
		select {
		case exit := <-exits:
			return exit
		case err := <-s.failed:
			s.say(fmt.Errorf("the output has nowhere to go, ending %s: %w", p, err))
			s.proxy.deliver(p, unix.SIGTERM)
			// Most first processes do not heed signals that they know nothing of.
			kill := time.AfterFunc(outputGrace, func() { s.proxy.deliver(p, unix.SIGKILL) })
			defer kill.Stop()
		}
	}
}

// say tells of something that went wrong but does not decide berth's status.
func (s *session) say(err error) {
	fmt.Fprintf(notes{s.app}, "berth: %s\n", message(err))
}

// close removes the streams.
func (s *session) close() {
	if err := s.stdio.Close(); err != nil {
		s.say(err)
	}
}

// exited turns the end of a process into berth's own.
func exited(exit client.Exit) error {
	if exit.Status == 0 {
		return nil
	}
	return &statusError{status: int(exit.Status)}
}

// refused gives the error of a command that could not be run its status.
func (p *proxy) refused(err error, command string) error {
	if err == nil {
		return nil
	}
	if s, cut := p.cut(); cut {
		return &statusError{status: statusSignalBase + int(s), err: &interruptedError{s}}
	}
	if status := invokeStatus(err, command); status != 0 {
		return &statusError{status: status, err: err}
	}
	return err
}
