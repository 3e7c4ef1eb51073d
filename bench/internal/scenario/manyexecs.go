package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/pkg/cio"
)

func manyExecsScenario() *Scenario {
	return &Scenario{
		Name:   "many-execs",
		Title:  "What many execs in one container leave: memory, threads and descriptors of its shim before, early and at the end",
		Rounds: once,
		Setup:  setupPayload,
		Round:  func(ctx context.Context, r *Run, round int) error { return r.manyExecs(ctx, r.P.ManyExecs) },
	}
}

// shimRest is how long a shim may take to give memory back.
const shimRest = 4 * time.Second

// manyExecs runs n execs, with a rest and a look after a tenth of them and at
// the end: what grows from one to the other grows without end.
func (r *Run) manyExecs(ctx context.Context, n int) (err error) {
	b, err := r.start(ctx, r.id("execs"), cio.NullIO, "sleep", "0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.kill(ctx)) }()
	helpers := r.D.Helpers(map[int]bool{int(b.task.Pid()): true})
	daemonBefore, err := procfs.ReadMemory(r.D.Pid())
	if err != nil {
		return err
	}
	early := max(1, n/10)
	var at [3]procfs.Memory
	if at[0], err = r.restedHelpers(ctx, "before", helpers); err != nil {
		return err
	}
	begin := time.Now()
	for i := range n {
		if err := r.execOnce(ctx, b, func(string, time.Duration) {}); err != nil {
			return fmt.Errorf("exec %d of %d: %w", i+1, n, err)
		}
		if i+1 == early {
			if at[1], err = r.restedHelpers(ctx, fmt.Sprintf("after %d execs", early), helpers); err != nil {
				return err
			}
		}
	}
	r.addRate("execs", n, time.Since(begin)-shimRest)
	if at[2], err = r.restedHelpers(ctx, fmt.Sprintf("after %d execs", n), helpers); err != nil {
		return err
	}
	daemonAfter, err := procfs.ReadMemory(r.D.Pid())
	if err != nil {
		return err
	}
	r.add("shim anon at the end", "KiB", report.Lower, float64(at[2].Anon))
	r.add("shim anon growth from a tenth to all", "KiB", report.Lower, float64(at[2].Anon-at[1].Anon))
	r.add("daemon anon growth", "KiB", report.Lower, float64(daemonAfter.Anon-daemonBefore.Anon))
	return nil
}

// restedHelpers waits until the helpers have had time to give memory back, and
// adds up what they have.
func (r *Run) restedHelpers(ctx context.Context, when string, pids []int) (sum procfs.Memory, err error) {
	select {
	case <-time.After(shimRest):
	case <-ctx.Done():
		return sum, ctx.Err()
	}
	threads, files := 0, 0
	for _, pid := range pids {
		m, err := procfs.ReadMemory(pid)
		if err != nil {
			return sum, err
		}
		sum = sum.Add(m)
		threads += procfs.Threads(pid)
		files += procfs.Files(pid)
	}
	r.add("shim anon "+when, "KiB", report.Lower, float64(sum.Anon))
	r.add("shim Rss "+when, "KiB", report.Lower, float64(sum.Rss))
	r.add("shim threads "+when, "count", report.Lower, float64(threads))
	r.add("shim descriptors "+when, "count", report.Lower, float64(files))
	return sum, nil
}
