package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
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

// trimmer gives memory back to the system once what needed it is over. Go does so by
// itself, but only with its next collections, which an idle daemon has few of.
type trimmer struct {
	trim  func()
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	due   bool // the timer runs
}

// rest is called at the end of calls. Those that took much put the moment off: the
// next one like it may come at once.
func (t *trimmer) rest(much bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.timer == nil:
		t.timer = time.AfterFunc(restTime, t.now)
	case much || !t.due:
		t.timer.Reset(restTime)
	}
	t.due = true
}

func (t *trimmer) now() {
	t.mu.Lock()
	t.due = false
	t.mu.Unlock()
	t.trim()
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

// pacer has Go collect garbage less often while little is in use. Go goes by a share
// of that, and a small daemon would collect every few dozen calls.
type pacer struct {
	least int // percent: what is configured
	set   func(percent int)
	now   int
	done  atomic.Bool
}

// marker is garbage as soon as it is made, so that the next collection finds it.
type marker struct{ _ *byte }

// watch looks after the next collection, and each that comes then.
func (p *pacer) watch() {
	runtime.AddCleanup(&marker{}, func(p *pacer) {
		if !p.done.Load() {
			p.adjust(inUse())
			p.watch()
		}
	}, p)
}

// adjust goes by what the last collection has left, in bytes.
func (p *pacer) adjust(live uint64) {
	percent := max(p.least, min(mostPercent, int(room*100/max(live, 1))))
	if percent != p.now {
		p.now = percent
		p.set(percent)
	}
}

// Close ends it. It never fails.
func (p *pacer) Close() error {
	p.done.Store(true)
	return nil
}

// inUse is how many bytes the last collection has left.
func inUse() uint64 {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64()
}
