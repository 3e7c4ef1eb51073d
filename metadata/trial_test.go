package metadata

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/berthd/berth/internal/leak"
)

// trial is a store in which workers carry out what rapid has drawn for them, while
// collections run without end.
type trial struct {
	w *world
	// over is closed once the workers are done.
	over chan struct{}

	mu       sync.Mutex // guards failures
	failures []string
}

// trials draws a plan for each worker, and has run carry them out, again and again.
func trials[P any](t *testing.T, workers int, plan *rapid.Generator[P], run func(tr *trial, plans []P)) {
	leak.CheckProcess(t)
	rapid.Check(t, func(rt *rapid.T) {
		plans := make([]P, workers)
		for i := range plans {
			plans[i] = plan.Draw(rt, fmt.Sprint("worker ", i))
		}
		// In memory where that can be had: what is tried are orders, not disks.
		dir, err := os.MkdirTemp("/dev/shm", "berth-trial-")
		if err != nil {
			dir, err = os.MkdirTemp("", "berth-trial-")
		}
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		tr := &trial{w: newWorldIn(t, dir), over: make(chan struct{})}
		run(tr, plans)
		tr.w.close()
		for _, f := range tr.failures {
			rt.Error(f)
		}
	})
}

func (tr *trial) fail(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.failures = append(tr.failures, fmt.Sprintf(format, args...))
}

// work has the workers run beside each other, and beside collections.
func (tr *trial) work(workers ...func()) {
	var group, collector sync.WaitGroup
	collector.Go(func() {
		for {
			if _, err := tr.w.Collect(bg); err != nil {
				tr.fail("%v", err)
			}
			select {
			case <-tr.over:
				return
			default:
			}
		}
	})
	for _, worker := range workers {
		group.Go(worker)
	}
	group.Wait()
	close(tr.over)
	collector.Wait()
}

// mustBeEmpty collects until there is no more to find, and looks what is left, in
// these namespaces and on the disk.
func (tr *trial) mustBeEmpty(spaces ...Scope) {
	for more := true; more; {
		report, err := tr.w.Collect(bg)
		if err != nil {
			tr.fail("%v", err)
		}
		more = report.More
	}
	tr.w.settled()
	for _, s := range spaces {
		if left := tr.w.left(s); len(left) > 0 {
			tr.fail("left in %s: %v", s.Namespace, left)
		}
	}
	if n := tr.w.directories(); n > 0 {
		tr.fail("%d directories are left", n)
	}
	tr.w.onDisk(nil)
	for p := range tr.w.Check(bg, CheckOptions{ReadContent: true}) {
		tr.fail("check: %v", p)
	}
}
