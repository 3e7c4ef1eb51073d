package shim

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types/runc"
	tasktypes "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
)

// Pids lists the processes of a task, and tells which are execs.
func (s *Shim) Pids(_ context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	c, p, err := s.find(r.Id, "")
	if err != nil {
		return nil, err
	}
	pids, err := c.processes(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name(), err)
	}
	execs := c.execPIDs()
	answer := &task.PidsResponse{}
	for _, pid := range pids {
		info := &tasktypes.ProcessInfo{Pid: uint32(pid)}
		if id, ok := execs[pid]; ok {
			details := &runc.ProcessDetails{ExecId: id}
			value, err := proto.Marshal(details)
			if err != nil {
				return nil, err
			}
			info.Info = &anypb.Any{TypeUrl: string(details.ProtoReflect().Descriptor().FullName()), Value: value}
		}
		answer.Processes = append(answer.Processes, info)
	}
	return answer, nil
}

// Stats tells what a task has used.
func (s *Shim) Stats(_ context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	c, p, err := s.find(r.Id, "")
	if err != nil {
		return nil, err
	}
	if state := c.report(p).state; state == Stopped || state == Deleted {
		return nil, fmt.Errorf("%s: a %s process uses nothing", p.name(), state)
	}
	group, err := cgroup.Of(p.pid)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name(), err)
	}
	name, value, err := group.Metrics()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name(), err)
	}
	return &task.StatsResponse{Stats: &anypb.Any{TypeUrl: name, Value: value}}, nil
}

// processes lists the pids of a container: from its cgroup, or where it has
// none of its own, from the tree of processes.
func (c *container) processes(init *process) ([]int, error) {
	if c.report(init).state == Stopped {
		return nil, nil
	}
	group, err := cgroup.Of(init.pid)
	if err == nil {
		return group.Processes()
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it ended just now
	}
	if !errors.Is(err, cgroup.ErrNone) {
		return nil, err
	}
	pids := []int{init.pid}
	for pid := range c.execPIDs() {
		pids = append(pids, pid)
	}
	for i := 0; i < len(pids); i++ { // grows
		children, err := sys.Children(pids[i])
		if err != nil {
			continue // it ended just now
		}
		pids = append(pids, children...)
	}
	return pids, nil
}

// execPIDs are the execs that run, by pid.
func (c *container) execPIDs() map[int]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	pids := map[int]string{}
	for id, p := range c.execs {
		if p.state == Running {
			pids[p.pid] = id
		}
	}
	return pids
}

// placeShim moves the shim into the control group that the options name. berthd
// has done so by now; other daemons leave it to the shim. Where it is refused the
// container runs all the same.
func (c *container) placeShim() {
	if c.shimGroup == "" {
		return
	}
	if err := sys.JoinCgroup(os.Getpid(), c.shimGroup); err != nil {
		c.shim.config.Log.Warn("shim not moved into its cgroup", "task", c.id, "cgroup", c.shimGroup, "error", err)
	}
}
