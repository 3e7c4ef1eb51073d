package scenario

import (
	"context"
	"errors"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/pkg/cio"
)

func shimScenario() *Scenario {
	return &Scenario{
		Name:   "shim",
		Title:  "Memory of the shim, or of whatever helpers a container has, with one container that does nothing",
		Rounds: func(p *Params) int { return p.ShimRounds },
		Setup:  setupPayload,
		Round:  func(ctx context.Context, r *Run, round int) error { return r.idleShim(ctx) },
	}
}

// idleShim measures all helpers that one container brings.
func (r *Run) idleShim(ctx context.Context) error {
	before := map[int]bool{}
	for _, pid := range r.D.Helpers(nil) {
		before[pid] = true
	}
	b, err := r.start(ctx, r.id("idle"), cio.NullIO, "sleep", "0")
	if err != nil {
		return err
	}
	time.Sleep(r.P.IdleBeforeMeasures)
	if err := r.measureShim(before, int(b.task.Pid())); err != nil {
		return errors.Join(err, b.kill(ctx))
	}
	return b.kill(ctx)
}

func (r *Run) measureShim(before map[int]bool, inside int) error {
	var sum procfs.Memory
	processes, threads := 0, 0
	for _, pid := range r.D.Helpers(map[int]bool{inside: true}) {
		if before[pid] {
			continue
		}
		m, err := procfs.ReadMemory(pid)
		if err != nil {
			return err
		}
		sum = sum.Add(m)
		processes++
		threads += procfs.Threads(pid)
	}
	if processes == 0 {
		r.note("no process comes with a container")
	}
	r.add("shim processes", "count", report.Lower, float64(processes))
	r.add("shim threads", "count", report.Lower, float64(threads))
	for _, m := range []struct {
		name string
		kib  int64
	}{{"shim anon", sum.Anon}, {"shim private dirty", sum.PrivateDirty}, {"shim Rss", sum.Rss}, {"shim Pss", sum.Pss}} {
		r.add(m.name, "KiB", report.Lower, float64(m.kib))
	}
	return nil
}
