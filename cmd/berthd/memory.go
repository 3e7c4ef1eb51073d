package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// restTime is how long nothing large must have happened for memory to be given
	// back: whoever pulls one image often pulls the next.
	restTime = 5 * time.Second
	// smallHeap is a heap, in bytes, that is not worth the time.
	smallHeap = 5 << 20
	// room is how many bytes a daemon at work may take from one collection to the next,
	// though it has little in use.
	room = 6 << 20
	// mostPercent bounds what room makes of Go's percentage, which also says how large a
	// heap has to be for a collection at all: 4 MiB at 100.
	mostPercent = 200
)

// keeper keeps the daemon small and quick.
//
// Go collects garbage by a share of what is in use, and a daemon that has little
// would do so every few dozen calls: it gets some room, until a large call begins. And
// Go gives memory back with its next collections, which an idle daemon has few of: the
// keeper does once it rests.
type keeper struct {
	least      int // Go's percentage as it is configured
	setPercent func(percent int)
	trim       func()
	inUse      func() uint64

	// mu guards what follows.
	mu      sync.Mutex
	percent int // that is set
	large   int // calls that are under way
	timer   *time.Timer
	due     bool // the timer runs
	closed  bool
}

// newKeeper is the keeper of this process. percent is 0 where somebody else has set
// Go's percentage.
func newKeeper(percent int) *keeper {
	k := &keeper{
		least: percent, setPercent: func(percent int) { debug.SetGCPercent(percent) }, trim: trim, inUse: inUse,
	}
	if percent > 0 {
		k.set(max(percent, mostPercent)) // for the start, after which it rests
		k.watch()
	}
	return k
}

// Large is called at the beginning of calls that may take much memory, and ended at
// their end, which puts the rest off: the next one like it may come at once.
func (k *keeper) Large() (ended func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.large++
	// What is in use from now on are mostly buffers, which cost a collection nothing.
	k.set(max(k.least/2, 1))
	return k.largeEnded
}

func (k *keeper) largeEnded() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.large--
	k.start(true)
}

// Small is called at the end of all other calls.
func (k *keeper) Small() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.start(!k.due)
}

// start has the rest come, from now on if anew. The caller holds mu.
func (k *keeper) start(anew bool) {
	switch {
	case k.closed:
		return
	case k.timer == nil:
		k.timer = time.AfterFunc(restTime, k.rest)
	case anew:
		k.timer.Reset(restTime)
	}
	k.due = true
}

func (k *keeper) rest() {
	k.mu.Lock()
	k.due = false
	busy := k.large > 0 // its end has the rest come
	k.mu.Unlock()
	if !busy {
		k.trim()
		k.relax()
	}
}

// Close ends it. It never fails.
func (k *keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
	}
	return nil
}

// marker is garbage as soon as it is made, so that the next collection finds it.
type marker struct{ _ *byte }

// watch looks at what is in use after the next collection, and each that comes then.
func (k *keeper) watch() {
	runtime.AddCleanup(&marker{}, func(k *keeper) {
		if k.collected() {
			k.watch()
		}
	}, k)
}

// collected goes by what the last collection has left, but for the time from a large
// call's beginning to the rest after it; false: the keeper is closed.
func (k *keeper) collected() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.percent >= k.least {
		k.set(k.pace())
	}
	return !k.closed
}

func (k *keeper) relax() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.large == 0 {
		k.set(k.pace())
	}
}

// pace gives what is in use room.
func (k *keeper) pace() int {
	return max(k.least, min(mostPercent, int(room*100/max(k.inUse(), 1))))
}

// set sets Go's percentage, unless somebody else has. The caller holds mu, but for
// newKeeper.
func (k *keeper) set(percent int) {
	if k.least > 0 && !k.closed && percent != k.percent {
		k.percent = percent
		k.setPercent(percent)
	}
}

// trim collects and gives back what is free, unless the heap is small. How much of it
// is in use is not known before that: the last collection was amidst the work.
func trim() {
	if heap() > smallHeap {
		debug.FreeOSMemory()
	}
}

// heap is how many bytes the heap holds of the system's.
func heap() uint64 {
	return read("/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes")
}

// inUse is how many bytes the last collection has left.
func inUse() uint64 { return read("/gc/heap/live:bytes") }

// read adds up metrics of the Go runtime.
func read(names ...string) uint64 {
	samples := make([]metrics.Sample, len(names))
	for i, name := range names {
		samples[i].Name = name
	}
	metrics.Read(samples)
	sum := uint64(0)
	for _, s := range samples {
		sum += s.Value.Uint64()
	}
	return sum
}
