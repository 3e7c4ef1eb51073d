package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// maxQuestions bounds how many shims one List or Metrics asks at once.
const maxQuestions = 32

// Get tells the state of a process.
func (t *Tasks) Get(ctx context.Context, ns string, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	k, err := t.lookup(ns, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	p, err := t.state(ctx, k, r.GetExecId())
	if err != nil {
		return nil, err
	}
	return &tasks.GetResponse{Process: p}, nil
}

// state finds the state of a process: what the daemon is sure of, else what the
// shim says.
func (t *Tasks) state(ctx context.Context, k *task, exec string) (*apitask.Process, error) {
	if v := k.view(); exec == "" && v.exit != nil {
		return k.known(v), nil
	}
	var reply *shimtask.StateResponse
	_, err := t.with(ctx, k.ns, k.id, "state", func(k *task, c *conn) (err error) {
		reply, err = call(ctx, c, "tell its state", t.cfg.Deadlines.State, c.shim.State,
			&shimtask.StateRequest{Id: k.id, ExecId: exec})
		return err
	})
	var gone *goneError
	switch {
	case errors.As(err, &gone) && exec == "":
		return k.known(k.view()), nil
	case errors.As(err, &gone):
		return k.knownExec(exec)
	case err == nil:
		if exec == "" {
			k.setStatus(reply.GetStatus())
		}
		return processOf(k.id, exec, reply), nil
	case errdefs.IsNotFound(err), errdefs.IsUnavailable(err), errdefs.IsFailedPrecondition(err),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, err
	}
	t.cfg.Log.Warn("shim can't tell a state", "namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	p := k.known(k.view())
	p.Status = apitask.Status_UNKNOWN
	return p, nil
}

func processOf(id, exec string, s *shimtask.StateResponse) *apitask.Process {
	if exec == "" {
		exec = id
	}
	return &apitask.Process{
		ContainerId: id, Id: exec, Pid: s.GetPid(), Status: s.GetStatus(),
		Stdin: s.GetStdin(), Stdout: s.GetStdout(), Stderr: s.GetStderr(), Terminal: s.GetTerminal(),
		ExitStatus: s.GetExitStatus(), ExitedAt: s.GetExitedAt(),
	}
}

// known is the state of init as the daemon itself knows it.
func (k *task) known(v view) *apitask.Process {
	p := &apitask.Process{
		ContainerId: k.id, Id: k.id, Pid: uint32(v.init.PID), Status: v.status,
		Stdin: v.intent.Stdin, Stdout: v.intent.Stdout, Stderr: v.intent.Stderr, Terminal: v.intent.Terminal,
	}
	if v.exit != nil {
		p.Status, p.ExitStatus, p.ExitedAt = apitask.Status_STOPPED, v.exit.Status, timestamp(v.exit.ExitedAt)
	}
	return p
}

// knownExec is the state of an exec whose shim has died.
func (k *task) knownExec(exec string) (*apitask.Process, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("exec %q of task %q: %w", exec, k.id, errdefs.ErrNotFound)
	}
	s := &apitask.Process{ContainerId: k.id, Id: exec, Pid: uint32(p.started.PID), Status: apitask.Status_RUNNING}
	switch {
	case !p.over():
	case p.err != nil:
		return nil, p.err
	default:
		s.Pid, s.Status = uint32(p.exit.PID), apitask.Status_STOPPED
		s.ExitStatus, s.ExitedAt = p.exit.Status, timestamp(p.exit.ExitedAt)
	}
	return s, nil
}

// List tells the state of every task of the namespace, in order of id. A shim
// that does not answer in time does not take its task off the list: then its
// last known state is told.
func (t *Tasks) List(ctx context.Context, ns string, _ *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	if err := names.Namespace(ns); err != nil {
		return nil, err
	}
	all := t.list(ns)
	states := make([]*apitask.Process, len(all))
	asking, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.State) // for all of them together
	defer cancel()
	parallel(len(all), maxQuestions, func(i int) {
		k := all[i]
		v := k.view()
		if v.stand == connected && v.exit == nil && asking.Err() == nil && t.answers(k, v.conn) {
			p, err := t.state(asking, k, "")
			if err != nil && asking.Err() != nil && ctx.Err() == nil {
				v.conn.missed()
			}
			if errdefs.IsNotFound(err) {
				return // deleted meanwhile
			}
			if err == nil {
				states[i] = p
				return
			}
		}
		states[i] = k.known(k.view())
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	reply := &tasks.ListTasksResponse{}
	for _, s := range states {
		if s != nil {
			reply.Tasks = append(reply.Tasks, s)
		}
	}
	return reply, nil
}

// parallel calls do for 0 to n-1, at most limit at once.
func parallel(n, limit int, do func(i int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, limit)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			do(i)
		})
	}
	wg.Wait()
}

// ListPids lists every process of a task. Without a shim it asks the kernel.
func (t *Tasks) ListPids(ctx context.Context, ns string, r *tasks.ListPidsRequest) (*tasks.ListPidsResponse, error) {
	var reply *shimtask.PidsResponse
	_, err := t.with(ctx, ns, r.GetContainerId(), "list pids", func(k *task, c *conn) (err error) {
		reply, err = call(ctx, c, "list its processes", t.cfg.Deadlines.Control, c.shim.Pids, &shimtask.PidsRequest{Id: k.id})
		return err
	})
	var gone *goneError
	if errors.As(err, &gone) && gone.lives {
		if list, ok, lerr := gone.task.members(); ok || lerr != nil {
			return &tasks.ListPidsResponse{Processes: list}, lerr
		}
	}
	if err != nil {
		return nil, err
	}
	return &tasks.ListPidsResponse{Processes: reply.GetProcesses()}, nil
}

// Metrics gives the statistics of the namespace's tasks that match any of the
// filters (fields id and namespace). Where a shim is gone or silent the daemon
// reads the control group itself; a task that can't tell is left out.
func (t *Tasks) Metrics(ctx context.Context, ns string, r *tasks.MetricsRequest) (*tasks.MetricsResponse, error) {
	if err := names.Namespace(ns); err != nil {
		return nil, err
	}
	matching, err := filter.ParseAll(r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	var all []*task
	for _, k := range t.list(ns) {
		if matching.Match(filter.AdaptorFunc(k.field)) {
			all = append(all, k)
		}
	}
	metrics := make([]*types.Metric, len(all))
	asking, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.State) // for all of them together
	defer cancel()
	parallel(len(all), maxQuestions, func(i int) {
		m, err := t.statistics(asking, all[i])
		if err != nil {
			t.cfg.Log.Debug("task left out of the metrics", "namespace", all[i].ns, "id", all[i].id, "error", err)
			return
		}
		metrics[i] = m
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	reply := &tasks.MetricsResponse{}
	for _, m := range metrics {
		if m != nil {
			reply.Metrics = append(reply.Metrics, m)
		}
	}
	return reply, nil
}

// field gives what a filter may ask of a task.
func (k *task) field(path []string) (string, bool) {
	if len(path) != 1 {
		return "", false
	}
	switch path[0] {
	case "id":
		return k.id, true
	case "namespace":
		return k.ns, true
	}
	return "", false
}

// Wait returns once a process has exited, also if that was long ago. It does not
// mind a shim that dies or is away: what ended is told from the records.
func (t *Tasks) Wait(ctx context.Context, ns string, r *tasks.WaitRequest) (*tasks.WaitResponse, error) {
	k, err := t.lookup(ns, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	p, err := t.awaited(k, r.GetExecId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	default:
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.ctx.Done():
			return nil, fmt.Errorf("wait for task %q: the daemon is stopping: %w", k.id, errdefs.ErrUnavailable)
		}
	}
	if p.err != nil {
		return nil, p.err
	}
	return &tasks.WaitResponse{ExitStatus: p.exit.Status, ExitedAt: timestamp(p.exit.ExitedAt)}, nil
}

// awaited gives a process that will be resolved.
func (t *Tasks) awaited(k *task, exec string) (*process, error) {
	k.mu.Lock()
	p := k.processLocked(exec)
	stand, c := k.stand, k.conn
	orphan := (stand == lost || stand == stopped) && !p.over() && !p.watched && exec != ""
	if orphan {
		// Its shim has died, and left no word of it.
		delete(k.execs, exec)
		p.resolve(record.Exit{}, fmt.Errorf("exec %q of task %q: %w", exec, k.id, errdefs.ErrNotFound))
	}
	k.mu.Unlock()
	if stand != connected || p.over() {
		return p, nil
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	defer t.wg.Done()
	t.ask(k, p, c)
	return p, nil
}
