package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"
	"github.com/berthd/berth/bench/internal/stats"

	"github.com/containerd/containerd/api/services/tasks/v1"
)

func densityScenario() *Scenario {
	return &Scenario{
		Name:   "density",
		Title:  "Memory and processes with many running sleepers; helpers are all processes of the daemon other than itself and the containers",
		Rounds: once,
		Setup:  setupPayload,
		Round:  func(ctx context.Context, r *Run, round int) error { return r.density(ctx, r.P.Density) },
	}
}

func (r *Run) density(ctx context.Context, n int) error {
	time.Sleep(r.P.IdleBeforeMeasures)
	before, err := procfs.ReadMemory(r.D.Pid())
	if err != nil {
		return err
	}
	helpersBefore := len(r.D.Helpers(nil))

	begin := time.Now()
	boxes, err := r.startMany(ctx, n, "sleep", "0")
	if err != nil {
		return err
	}
	r.addRate("containers started (4 at a time)", n, time.Since(begin))
	time.Sleep(r.P.IdleBeforeMeasures)

	if err := r.measureHelpers(boxes, helpersBefore); err != nil {
		return err
	}
	after, err := procfs.ReadMemory(r.D.Pid())
	if err != nil {
		return err
	}
	kib := func(name string, v float64) { r.add(name, "KiB", report.Lower, v) }
	kib("daemon Rss", float64(after.Rss))
	kib("daemon anon", float64(after.Anon))
	r.add("daemon Rss growth per container", "KiB", report.Info, float64(after.Rss-before.Rss)/float64(n))
	r.add("daemon anon growth per container", "KiB", report.Info, float64(after.Anon-before.Anon)/float64(n))

	if err := r.measureLists(ctx, n); err != nil {
		return err
	}
	begin = time.Now()
	if err := killMany(ctx, boxes); err != nil {
		return err
	}
	r.addRate("containers killed+removed (4 at a time)", n, time.Since(begin))
	return r.noteLeftHelpers(helpersBefore)
}

// measureHelpers reads the memory of every shim or other helper process.
func (r *Run) measureHelpers(boxes []*box, helpersBefore int) error {
	inside := map[int]bool{}
	for _, b := range boxes {
		inside[int(b.task.Pid())] = true
	}
	helpers := r.D.Helpers(inside)
	var sum procfs.Memory
	var rss, anon []float64
	threads := 0
	for _, pid := range helpers {
		m, err := procfs.ReadMemory(pid)
		if err != nil {
			return fmt.Errorf("helper %s: %w", procfs.Command(pid), err)
		}
		sum = sum.Add(m)
		rss = append(rss, float64(m.Rss))
		anon = append(anon, float64(m.Anon))
		threads += procfs.Threads(pid)
	}
	n := float64(len(boxes))
	r.add("helper processes", "count", report.Lower, float64(len(helpers)))
	r.add("helper threads", "count", report.Lower, float64(threads))
	r.add("helpers' Rss per container", "KiB", report.Lower, float64(sum.Rss)/n)
	r.add("helpers' Pss per container", "KiB", report.Lower, float64(sum.Pss)/n)
	r.add("helpers' anon per container", "KiB", report.Lower, float64(sum.Anon)/n)
	r.note("%d helpers before the first container; median helper with %d containers: Rss %.0f KiB, anon %.0f KiB",
		helpersBefore, len(boxes), stats.Median(rss), stats.Median(anon))
	return nil
}

func (r *Run) measureLists(ctx context.Context, n int) error {
	for range 10 {
		begin := time.Now()
		got, err := r.D.Client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return fmt.Errorf("task list: %w", err)
		}
		r.addMs("tasks.List", time.Since(begin))
		if len(got.Tasks) != n {
			return fmt.Errorf("tasks.List gave %d tasks, not %d", len(got.Tasks), n)
		}
		begin = time.Now()
		list, err := r.D.Client.ContainerService().List(ctx)
		if err != nil {
			return fmt.Errorf("container list: %w", err)
		}
		r.addMs("containers.List", time.Since(begin))
		if len(list) != n {
			return fmt.Errorf("containers.List gave %d containers, not %d", len(list), n)
		}
	}
	return nil
}

// noteLeftHelpers reports helpers that outlive their containers.
func (r *Run) noteLeftHelpers(before int) error {
	for range 20 {
		if len(r.D.Helpers(nil)) <= before {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.note("%d helper processes left 2 s after the last container was removed", len(r.D.Helpers(nil)))
	return nil
}
