package main

import (
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
)

// trimmer gives memory back to the system once what needed it is over. Go does so by
// itself, but only with its next collections, which an idle daemon has few of.
type trimmer struct {
	trim  func()
	mu    sync.Mutex // guards timer
	timer *time.Timer
}

// rest is called at the end of what may have taken memory.
func (t *trimmer) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		t.timer = time.AfterFunc(restTime, t.trim)
		return
	}
	t.timer.Reset(restTime)
}

// Close ends the trimmer. It never fails.
func (t *trimmer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
	}
	return nil
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
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	sum := uint64(0)
	for _, s := range samples {
		sum += s.Value.Uint64()
	}
	return sum
}
