package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
)

// proxied are the signals that go on to the process of a run or exec.
var proxied = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT}

// A process that does not heed ^C is killed by this many of them, each within
// this time of the one before.
const (
	impatient      = 3
	impatientPause = 3 * time.Second
)

// signalTimeout bounds the delivery of a signal.
const signalTimeout = 5 * time.Second

// startPatience is how long a signal waits for a start to come to its end, so
// that it can go to the process.
const startPatience = 2 * time.Second

// proxy decides what a signal to berth does: while a process is set up, or the
// set-up undone, it ends that; while the process runs, it goes to the process.
// While the process is being started nobody can tell which it is to be: it waits.
type proxy struct {
	ctx     context.Context // of the set-up; ends with the first signal
	cancel  context.CancelCauseFunc
	signals chan os.Signal
	say     io.Writer
	exit    func(int) // ends berth at once
	done    sync.WaitGroup

	// mu guards what follows.
	mu          sync.Mutex
	target      *client.Process // nil: none runs
	starting    bool
	pending     []unix.Signal // that came while it was starting
	interrupted unix.Signal   // what ended the set-up
	count       int           // of ^C in a row
	last        time.Time     // when the last one came
}

// interruptedError is why a set-up ended.
type interruptedError struct{ signal unix.Signal }

func (e *interruptedError) Error() string { return "interrupted by " + unix.SignalName(e.signal) }

// newProxy takes over berth's signals until close.
func newProxy(say io.Writer) *proxy {
	p := &proxy{signals: make(chan os.Signal, 32), say: say, exit: os.Exit}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	signal.Notify(p.signals, proxied...)
	// A closed standard output is an error of the write; it must not kill berth
	// before it has cleaned up.
	signal.Ignore(unix.SIGPIPE)
	p.done.Go(func() {
		for s := range p.signals {
			p.take(s.(unix.Signal))
		}
	})
	return p
}

// close gives the signals back.
func (p *proxy) close() {
	signal.Stop(p.signals)
	close(p.signals)
	p.done.Wait()
	p.cancel(nil)
}

// start says that the process is being started from now on, until attach.
func (p *proxy) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting = true
}

// attach makes signals go to a process from now on, those first that came while
// it was starting; nil: to nobody. It fails if a signal has ended the set-up.
func (p *proxy) attach(target *client.Process) error {
	p.mu.Lock()
	p.starting = false
	pending := p.pending
	p.pending = nil
	if target != nil && p.interrupted != 0 {
		defer p.mu.Unlock()
		return &interruptedError{p.interrupted}
	}
	p.target = target
	p.mu.Unlock()
	if target != nil {
		for _, s := range pending {
			p.deliver(target, s)
		}
	}
	return nil
}

// hold keeps a signal that came while the process was starting; false: it is not
// starting, or has had its time.
func (p *proxy) hold(s unix.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.starting || len(p.pending) > 0 && ends(s) {
		return false
	}
	p.pending = append(p.pending, s)
	p.countInterrupt(s)
	if ends(s) {
		time.AfterFunc(startPatience, func() { p.giveUp(s) })
	}
	return true
}

// giveUp ends a start that goes on although a signal waits for its end.
func (p *proxy) giveUp(s unix.Signal) {
	p.mu.Lock()
	stuck := p.starting && p.interrupted == 0
	if stuck {
		p.interrupted = s
	}
	p.mu.Unlock()
	if stuck {
		p.cancel(&interruptedError{s})
	}
}

// cut tells whether a signal ended the set-up, and which.
func (p *proxy) cut() (unix.Signal, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.interrupted, p.interrupted != 0
}

// take handles one signal.
func (p *proxy) take(s unix.Signal) {
	if p.hold(s) {
		return
	}
	p.mu.Lock()
	target, again := p.target, p.interrupted != 0
	if target == nil && ends(s) {
		p.interrupted = s
	}
	count := p.countInterrupt(s)
	p.mu.Unlock()
	switch {
	case target != nil && count >= impatient:
		fmt.Fprintf(p.say, "berth: killing %s, as it does not heed ^C\n", target)
		p.deliver(target, unix.SIGKILL)
	case target != nil:
		p.deliver(target, s)
	case !ends(s):
	case again:
		fmt.Fprintln(p.say, "berth: interrupted again, not waiting for the clean-up: `berth ps -a` may show what is left")
		p.exit(statusSignalBase + int(s))
	default:
		p.cancel(&interruptedError{s})
	}
}

// ends tells whether a signal ends a program that does nothing about it.
func ends(s unix.Signal) bool { return s != unix.SIGCONT }

// countInterrupt counts ^C that come quickly one after another. The caller has
// the lock.
func (p *proxy) countInterrupt(s unix.Signal) int {
	if s != unix.SIGINT {
		return 0
	}
	now := time.Now()
	if now.Sub(p.last) > impatientPause {
		p.count = 0
	}
	p.last = now
	p.count++
	return p.count
}

// deliver sends a signal to the process. That it has ended is no matter.
func (p *proxy) deliver(target *client.Process, s unix.Signal) {
	ctx, cancel := context.WithTimeout(context.Background(), signalTimeout)
	defer cancel()
	if err := target.Signal(ctx, s); err != nil && !errdefs.IsNotFound(err) {
		fmt.Fprintf(p.say, "berth: %s\n", message(err))
	}
}
