package main

import (
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const mib = 1 << 20

// TestKeeperTrims: memory is given back once, some time after the last of what needed
// it, and whatever small calls come meanwhile.
func TestKeeperTrims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int32
		told := func() int { synctest.Wait(); return int(count.Load()) }
		k := &keeper{trim: func() { count.Add(1) }, inUse: func() uint64 { return mib }}
		for range 3 {
			ended := k.Large()
			time.Sleep(restTime - time.Second)
			k.Small()
			ended()
			time.Sleep(restTime - time.Second)
		}
		ended := k.Large()
		k.Small()
		time.Sleep(3 * restTime)
		ended()
		time.Sleep(restTime - time.Second)
		if n := told(); n != 0 {
			t.Errorf("%d times amidst the work", n)
		}
		time.Sleep(2 * time.Second)
		if n := told(); n != 1 {
			t.Errorf("%d times afterwards", n)
		}
		for range 2 * restTime / time.Second {
			k.Small()
			time.Sleep(time.Second)
		}
		if n := told(); n != 2 && n != 3 {
			t.Errorf("%d times beside small calls", n)
		}
		time.Sleep(2 * restTime)
		before := told()
		k.Small()
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		k.Large()()
		time.Sleep(2 * restTime)
		if told() != before {
			t.Error("once more after the end")
		}
	})
}

// TestKeeperPaces: a small heap is collected less often than its share says, a large
// one as it is configured, and any twice as often from the beginning of a large call.
func TestKeeperPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []int
		live := uint64(0)
		k := &keeper{least: 50, percent: 50, trim: func() {}, setPercent: func(percent int) { told = append(told, percent) }, inUse: func() uint64 { return live }}
		for _, live = range []uint64{mib, 2 * mib, 4 * mib, 20 * mib, 30 * mib, 0} {
			k.collected()
		}
		one, two := k.Large(), k.Large()
		k.collected()
		one()
		k.Small()
		k.collected()
		time.Sleep(2 * restTime)
		two()
		k.collected()
		time.Sleep(2 * restTime)
		k.Close()
		if want := []int{200, 150, 50, 200, 25, 200}; !slices.Equal(told, want) {
			t.Errorf("%v, want %v", told, want)
		}
	})
}

// TestKeeperLeavesAlone: what the environment says of Go's percentage counts.
func TestKeeperLeavesAlone(t *testing.T) {
	k := newKeeper(0)
	k.setPercent = func(int) { t.Error("it is set") }
	k.Large()()
	k.collected()
	k.Close()
}

// TestKeeperWatches all collections, until it is closed.
func TestKeeperWatches(t *testing.T) {
	told := make(chan int, 1)
	k := &keeper{least: 1, setPercent: func(percent int) { told <- percent }, inUse: func() uint64 { return mib }}
	k.watch()
	for range 2 {
		k.mu.Lock()
		k.percent = 1 // so that there is something to tell
		k.mu.Unlock()
		runtime.GC()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("a collection that it did not see")
		}
	}
	k.Close()
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
