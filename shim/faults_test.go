//go:build faults

package shim

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/fault"
	"github.com/berthd/berth/internal/sys"
)

// life runs a task to its end. What fails is tried again once, after disarm.
func (b *bench) life(disarm func()) (failed error) {
	again := func(do func() error) {
		if err := do(); err != nil {
			disarm()
			failed = errors.Join(failed, err)
			if children, cerr := sys.Children(os.Getpid()); cerr != nil || len(children) > 1 {
				b.t.Errorf("after %v: children %v, %v", err, children, cerr)
			}
			if err := do(); err != nil {
				b.t.Fatalf("a second time: %v", err)
			}
		}
	}
	again(b.create)
	again(func() error { return b.start("") })
	if err := b.exec("e"); err != nil {
		b.t.Fatal(err)
	}
	again(func() error { return b.start("e") })
	c, err := b.get("c")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range c.execsIn(Running) {
		if err := p.handle.Signal(unix.SIGKILL); err != nil {
			b.t.Fatal(err)
		}
	}
	if status, err := b.wait("e"); err != nil || status != 137 {
		b.t.Fatal(status, err)
	}
	if _, err := b.delete("e"); err != nil {
		b.t.Fatal(err)
	}
	if err := b.kill(unix.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if status, err := b.wait(""); err != nil || status != 137 {
		b.t.Fatal(status, err)
	}
	again(func() error { _, err := b.delete(""); return err })
	return failed
}

// TestTwoFates fails each durable step in both ways: a create or an exec that
// fails leaves nothing and can be repeated, and an exit is told even if its
// record can't be written.
func TestTwoFates(t *testing.T) {
	fault.Reset()
	b := newBench(t, "exec sleep 1000")
	if err := b.life(func() {}); err != nil {
		t.Fatal(err)
	}
	points := fault.Seen()
	if len(points) < 6 {
		t.Fatalf("points: %v", points)
	}
	for _, point := range points {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) {
				b := newBench(t, "exec sleep 1000")
				disarm := fault.Set(point, fate)
				defer disarm()
				err := b.life(disarm)
				if told := !strings.HasPrefix(point, "shim.exit."); told != errors.Is(err, fault.ErrInjected) {
					t.Errorf("life: %v", err)
				}
				events := b.published()
				if events[len(events)-1] != "delete" || events[len(events)-2] != "exit c" {
					t.Errorf("events %q", events)
				}
			})
		}
	}
}
