package main

import (
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrimmer: memory is given back once, some time after the last of what needed it.
func TestTrimmer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int32
		told := func() int { synctest.Wait(); return int(count.Load()) }
		m := &trimmer{trim: func() { count.Add(1) }}
		for range 3 {
			m.rest(true)
			time.Sleep(restTime - time.Second)
		}
		if n := told(); n != 0 {
			t.Errorf("%d times amidst the work", n)
		}
		time.Sleep(2 * time.Second)
		if n := told(); n != 1 {
			t.Errorf("%d times afterwards", n)
		}
		m.rest(false)
		time.Sleep(2 * restTime)
		if n := told(); n != 2 {
			t.Errorf("%d times after the second work", n)
		}
		// Small calls that never end don't put it off.
		for range 2 * restTime / time.Second {
			m.rest(false)
			time.Sleep(time.Second)
		}
		if n := told(); n != 3 && n != 4 {
			t.Errorf("%d times beside small work", n)
		}
		time.Sleep(2 * restTime)
		before := told()
		m.rest(false)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * restTime)
		if told() != before {
			t.Error("once more after the end")
		}
	})
}

// TestTrimGivesBack frees a heap that nobody needs any more.
func TestTrimGivesBack(t *testing.T) {
	for range 64 {
		sink = make([]byte, 1<<20)
	}
	sink = nil
	trim()
	if n := heap(); n > 32<<20 {
		t.Errorf("%d bytes are held", n)
	}
}

var sink []byte

// TestPacer: a small heap is collected less often than its share says, a large one
// as it is configured.
func TestPacer(t *testing.T) {
	const mib = 1 << 20
	var told []int
	p := &pacer{least: 50, now: 50, set: func(percent int) { told = append(told, percent) }}
	for _, live := range []uint64{mib, 2 * mib, 4 * mib, 20 * mib, 30 * mib, 0} {
		p.adjust(live)
	}
	if want := []int{200, 150, 50, 200}; !slices.Equal(told, want) {
		t.Errorf("%v, want %v", told, want)
	}
}

// TestPacerFollows collections, until it is closed.
func TestPacerFollows(t *testing.T) {
	told := make(chan int, 1)
	p := &pacer{least: 1, now: 1, set: func(percent int) { told <- percent }}
	p.watch()
	for range 2 {
		p.now = 1 // so that there is something to tell
		runtime.GC()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("a collection that it did not see")
		}
	}
	p.Close()
}
