package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/cio"
)

func restartScenario() *Scenario {
	return &Scenario{
		Name:   "restart",
		Title:  "SIGKILL of the daemon under running containers and a new start; some containers exit while it is down",
		Rounds: func(p *Params) int { return p.RestartRounds },
		Setup:  setupPayload,
		Round:  func(ctx context.Context, r *Run, round int) error { return r.restart(ctx) },
	}
}

// doomed is a container that exits while the daemon is down.
type doomed struct {
	id   string
	pid  int
	code uint32
}

// restart kills the daemon twice: first with running containers only, then
// with some that exit while it is down.
func (r *Run) restart(ctx context.Context) error {
	running, err := r.startMany(ctx, r.P.RestartRunning, "sleep", "0")
	if err != nil {
		return err
	}
	if err := r.D.Kill(); err != nil {
		return err
	}
	lost := 0
	for _, b := range running {
		if !procfs.Alive(int(b.task.Pid())) {
			lost++
		}
	}
	r.add("running containers lost with the daemon", "count", report.Lower, float64(lost))
	if err := r.comeBack(ctx, "restart", running); err != nil {
		return err
	}

	gone, err := r.startDoomed(ctx)
	if err != nil {
		return err
	}
	if err := r.D.Kill(); err != nil {
		return err
	}
	if err := endDoomed(gone); err != nil {
		return err
	}
	if err := r.comeBack(ctx, "restart after exits", running); err != nil {
		return err
	}
	r.checkDoomed(ctx, gone)
	return killMany(ctx, running)
}

// comeBack starts the daemon and measures until everything works again.
func (r *Run) comeBack(ctx context.Context, name string, running []*box) error {
	toVersion, err := r.D.Start(ctx)
	if err != nil {
		return err
	}
	r.addMs(name+" to Version", toVersion)
	if err := r.untilAllRunning(ctx, running); err != nil {
		return err
	}
	r.addMs(name+" to all tasks RUNNING", time.Since(r.D.StartedAt()))
	if err := r.untilAllAnswer(ctx, running); err != nil {
		return err
	}
	r.addMs(name+" to an answer from each task's shim", time.Since(r.D.StartedAt()))
	if err := r.reload(ctx, running[:1]); err != nil {
		return err
	}
	if err := r.execOnce(ctx, running[0], func(string, time.Duration) {}); err != nil {
		return err
	}
	r.addMs(name+" to first exec done", time.Since(r.D.StartedAt()))
	return r.reload(ctx, running[1:])
}

// startDoomed starts the containers that are to exit without the daemon.
func (r *Run) startDoomed(ctx context.Context) ([]doomed, error) {
	gone := make([]doomed, r.P.RestartExited)
	ids := make([]string, len(gone))
	for i := range ids {
		ids[i] = r.id("doomed")
	}
	err := parallel(4, len(gone), func(i int) error {
		code := uint32(40 + i%200)
		b, err := r.start(ctx, ids[i], cio.NullIO, "onterm", fmt.Sprint(code))
		if err == nil {
			gone[i] = doomed{b.id, int(b.task.Pid()), code}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The payload needs a moment to install its signal handler.
	time.Sleep(300 * time.Millisecond)
	return gone, nil
}

// endDoomed signals the doomed containers from outside and waits until their
// processes are gone.
func endDoomed(gone []doomed) error {
	for _, g := range gone {
		if err := syscall.Kill(g.pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("signal %s: %w", g.id, err)
		}
	}
	end := time.Now().Add(10 * time.Second)
	for _, g := range gone {
		for procfs.Alive(g.pid) {
			if time.Now().After(end) {
				return fmt.Errorf("%s does not exit on SIGTERM", g.id)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// untilAllRunning polls tasks.List.
func (r *Run) untilAllRunning(ctx context.Context, boxes []*box) error {
	for {
		states := map[string]task.Status{}
		got, err := r.D.Client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err == nil {
			for _, t := range got.Tasks {
				states[t.ID] = t.Status
				if t.ContainerID != "" {
					states[t.ContainerID] = t.Status
				}
			}
		}
		up := 0
		for _, b := range boxes {
			if states[b.id] == task.Status_RUNNING {
				up++
			}
		}
		if up == len(boxes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after the restart tasks.List shows %d of %d RUNNING (error %v)", up, len(boxes), err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// untilAllAnswer asks for the processes of each task, which only its shim knows.
func (r *Run) untilAllAnswer(ctx context.Context, boxes []*box) error {
	svc := r.D.Client.TaskService()
	return parallel(16, len(boxes), func(i int) error {
		for {
			_, err := svc.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: boxes[i].id})
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("the shim of %s does not answer after the restart: %w", boxes[i].id, err)
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
}

// reload attaches to the containers of before the restart.
func (r *Run) reload(ctx context.Context, boxes []*box) error {
	for _, b := range boxes {
		c, err := r.D.Client.LoadContainer(ctx, b.id)
		if err != nil {
			return fmt.Errorf("load %s: %w", b.id, err)
		}
		t, err := c.Task(ctx, nil)
		if err != nil {
			return fmt.Errorf("load task %s: %w", b.id, err)
		}
		if t.Pid() != b.task.Pid() {
			r.note("WRONG pid after restart: %d, not %d", t.Pid(), b.task.Pid())
		}
		b.c, b.task = c, t
		if b.exit, err = t.Wait(ctx); err != nil {
			return fmt.Errorf("wait %s: %w", b.id, err)
		}
	}
	return nil
}

// verdicts counts how the exit codes of doomed containers were reported.
type verdicts struct{ right, wrong, missing int }

func (v *verdicts) add(ok bool, got, want uint32) {
	switch {
	case !ok:
		v.missing++
	case got == want:
		v.right++
	default:
		v.wrong++
	}
}

// checkDoomed asks Get, Wait and Delete for each exit code.
func (r *Run) checkDoomed(ctx context.Context, gone []doomed) {
	results := map[string]*verdicts{"Get": {}, "Wait": {}, "Delete": {}}
	svc := r.D.Client.TaskService()
	var firstErr error
	keep := func(id string, err error) {
		if firstErr == nil && err != nil {
			firstErr = errors.New(strings.ReplaceAll(err.Error(), id, "ID"))
		}
	}
	for _, g := range gone {
		got, err := svc.Get(ctx, &tasks.GetRequest{ContainerID: g.id})
		ok := err == nil && got.Process.Status == task.Status_STOPPED
		results["Get"].add(ok, got.GetProcess().GetExitStatus(), g.code)
		keep(g.id, err)

		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		w, err := svc.Wait(short, &tasks.WaitRequest{ContainerID: g.id})
		cancel()
		results["Wait"].add(err == nil, w.GetExitStatus(), g.code)
		keep(g.id, err)

		del, err := svc.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: g.id})
		results["Delete"].add(err == nil, del.GetExitStatus(), g.code)
		keep(g.id, err)
		_ = r.D.Client.ContainerService().Delete(ctx, g.id)
		_ = r.snapshotter().Remove(ctx, g.id)
	}
	for _, call := range []string{"Get", "Wait", "Delete"} {
		v := results[call]
		r.add("exit while down: "+call+" right", "count", report.Higher, float64(v.right))
		r.add("exit while down: "+call+" wrong", "count", report.Lower, float64(v.wrong))
		r.add("exit while down: "+call+" missing", "count", report.Lower, float64(v.missing))
	}
	if firstErr != nil {
		r.note("first error when asking for exits: %v", firstErr)
	}
}
