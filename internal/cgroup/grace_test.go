package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counted makes a Grace that writes to a file of its own, and counts.
func counted(t *testing.T) (*Grace, *atomic.Int64, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cgroup.procs")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := &atomic.Int64{}
	g := NewGrace()
	g.file = func() (string, error) { n.Add(1); return path, nil }
	return g, n, path
}

func TestGraceIsTakenWhileItIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n, path := counted(t)
		first, second := g.Hold(), g.Hold()
		time.Sleep(10 * graceEvery)
		synctest.Wait()
		if got := n.Load(); got < 10 || got > 12 {
			t.Errorf("taken %d times in ten intervals", got)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "0" {
			t.Errorf("written %q, %v", data, err)
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
		g, n, _ := counted(t)
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
		g, n, _ := counted(t)
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
		g.file = func() (string, error) { n.Add(1); return "", fs.ErrPermission }
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
	file := ownProcs()
	path, err := file()
	if errors.Is(err, ErrNone) {
		t.Skip("no cgroup hierarchy is mounted here")
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	g := NewGrace()
	took := make(chan struct{})
	once := sync.OnceFunc(func() { close(took) })
	calls := 0
	g.file = func() (string, error) {
		if calls++; calls > 3 {
			once()
		}
		return file()
	}
	release := g.Hold()
	defer g.Close()
	select {
	case <-took:
	case <-time.After(10 * time.Second):
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			t.Skipf("this process may not move itself: %v", err)
		} else if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s was not written", path)
	}
	release()
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("this process was in\n%s\nand is in\n%s", before, after)
	}
}
