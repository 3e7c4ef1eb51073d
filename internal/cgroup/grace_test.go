package cgroup

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// written counts what is written to it.
type written struct{ n atomic.Int64 }

func (w *written) Write(b []byte) (int, error) {
	if string(b) != "0" {
		return 0, errors.New("not this process")
	}
	w.n.Add(1)
	return len(b), nil
}

func (w *written) Close() error { return nil }

// counted makes a Grace that moves nothing, and counts how often.
func counted() (*Grace, *atomic.Int64) {
	g, w := NewGrace(), &written{}
	g.open = func() (io.WriteCloser, error) { return w, nil }
	return g, &w.n
}

func TestGraceIsTakenWhileItIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := counted()
		first, second := g.Hold(), g.Hold()
		time.Sleep(10 * graceEvery)
		synctest.Wait()
		if got := n.Load(); got < 10 || got > 12 {
			t.Errorf("taken %d times in ten intervals", got)
		}
		first()
		first()
		time.Sleep(2 * graceEvery)
		synctest.Wait()
		held := n.Load()
		if held < 12 {
			t.Errorf("not taken any more although it is still held")
		}
		second()
		synctest.Wait()
		before := n.Load()
		time.Sleep(100 * graceEvery)
		synctest.Wait()
		if got := n.Load(); got > before {
			t.Errorf("taken %d times after the release", got-before)
		}
		g.Hold()()
		synctest.Wait()
		if n.Load() == before {
			t.Error("not taken by a later hold")
		}
		g.Close()
	})
}

func TestGraceEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := counted()
		release := g.Hold()
		time.Sleep(2 * graceLimit)
		synctest.Wait()
		before := n.Load()
		time.Sleep(graceLimit)
		synctest.Wait()
		if got := n.Load(); got > before {
			t.Errorf("taken %d times after the limit", got-before)
		}
		release()
		g.Close()
		g.Hold()()
		if got := n.Load(); got > before {
			t.Errorf("taken %d times after Close", got-before)
		}
	})
}

func TestGraceExpectsAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := counted()
		g.Expect(10 * graceEvery)
		g.Expect(graceEvery) // takes nothing back
		g.Hold()()
		time.Sleep(5 * graceEvery)
		synctest.Wait()
		if got := n.Load(); got < 5 {
			t.Errorf("taken %d times in five intervals", got)
		}
		time.Sleep(10 * graceEvery)
		synctest.Wait()
		before := n.Load()
		time.Sleep(10 * graceEvery)
		synctest.Wait()
		if got := n.Load(); got > before {
			t.Errorf("taken %d times after nobody came", got-before)
		}
		g.Close()
	})
}

func TestGraceGivesUpWhereItIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGrace()
		var n atomic.Int64
		g.open = func() (io.WriteCloser, error) { n.Add(1); return nil, fs.ErrPermission }
		for range 3 {
			g.Hold()
			time.Sleep(10 * graceEvery)
			synctest.Wait()
		}
		if got := n.Load(); got != 1 {
			t.Errorf("tried %d times", got)
		}
		g.Close()
	})
}

// The real thing must leave this process where it is.
func TestGraceMovesNothing(t *testing.T) {
	open := ownProcs()
	if f, err := open(); err != nil {
		t.Skipf("this process may not move itself: %v", err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var m mover
	defer m.close()
	for range 3 {
		if err := m.move(open); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("this process was in\n%s\nand is in\n%s", before, after)
	}
}
