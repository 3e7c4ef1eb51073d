package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/client/fakedaemon"
)

// raise sends this process a signal.
func raise(t *testing.T, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func TestProxyEndsASetUp(t *testing.T) {
	var say lockedBuffer
	p := newProxy(&say)
	defer p.close()
	exits := make(chan int, 1)
	p.exit = func(status int) { exits <- status }
	raise(t, unix.SIGCONT) // ends nothing
	raise(t, unix.SIGTERM)
	<-p.ctx.Done()
	var interrupted *interruptedError
	if !errors.As(context.Cause(p.ctx), &interrupted) || interrupted.signal != unix.SIGTERM {
		t.Errorf("cause %v", context.Cause(p.ctx))
	}
	var status *statusError
	if err := p.refused(errors.New("x"), ""); !errors.As(err, &status) || status.status != 143 {
		t.Errorf("refused: %v", err)
	}
	if err := p.attach(&client.Process{}); err == nil {
		t.Error("a process was attached after the interruption")
	}
	raise(t, unix.SIGINT)
	if got := <-exits; got != 130 {
		t.Errorf("the second signal exits with %d", got)
	}
}

func TestProxyForwards(t *testing.T) {
	d := withImage(t)
	got := make(chan unix.Signal, 10)
	d.Behave = func(p *fakedaemon.Process) uint32 {
		for s := range p.Signals {
			got <- s
			if s == unix.SIGKILL {
				return 137
			}
		}
		return 0
	}
	berth(t, d, "", "run", "-d", "--name", "c1", "busybox").want(t, 0, "", "")
	c, err := client.Dial(t.Context(), d.Address, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var say lockedBuffer
	p := newProxy(&say)
	defer p.close()
	if err := p.attach(c.Process("c1", "")); err != nil {
		t.Fatal(err)
	}
	var signals []unix.Signal
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGINT, unix.SIGINT, unix.SIGINT} {
		raise(t, s)
		signals = append(signals, <-got)
	}
	if want := []unix.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGINT, unix.SIGINT, unix.SIGKILL}; !slices.Equal(signals, want) {
		t.Errorf("got %v, want %v", signals, want)
	}
	if !strings.Contains(say.String(), "does not heed ^C") {
		t.Errorf("said %q", say.String())
	}
}

// TestRunIsInterrupted: a signal while a task is being made ends the run, and
// nothing is left.
func TestRunIsInterrupted(t *testing.T) {
	d := withImage(t)
	d.Hold("Tasks/Create", func() { raise(t, unix.SIGINT) })
	berth(t, d, "", "run", "--name", "c1", "busybox").want(t, 130, "", "berth: interrupted by SIGINT")
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestRunIsInterruptedWhileItStarts: the process may be running by then, so it
// gets the signal.
func TestRunIsInterruptedWhileItStarts(t *testing.T) {
	d := withImage(t)
	d.Behave = func(p *fakedaemon.Process) uint32 {
		raise(t, unix.SIGINT)
		return fakedaemon.UntilKilled(p)
	}
	d.Delay("Tasks/Start", 50*time.Millisecond)
	berth(t, d, "", "run", "--rm", "busybox").want(t, 130, "", "")
	if got := len(d.Calls("Tasks/Kill")); got != 1 {
		t.Errorf("%d signals were sent", got)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestStartIsStuck: a start that does not end does not hold up ^C for ever.
func TestStartIsStuck(t *testing.T) {
	for name, signals := range map[string]int{"patience": 1, "again": 2} {
		t.Run(name, func(t *testing.T) {
			d := withImage(t)
			d.Behave = fakedaemon.UntilKilled
			d.Hold("Tasks/Start", func() {
				for range signals {
					raise(t, unix.SIGINT)
				}
			})
			berth(t, d, "", "run", "busybox").want(t, 130, "", "interrupted by SIGINT")
			if left := d.Left(); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}
