package runtime

import (
	"errors"
	"fmt"

	"github.com/berthd/berth/api/types/runc"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/protobuf"
)

// members lists the processes of a container that lives without its shim, from
// the control group of its init. ok is false if it has none of its own, or has
// ended meanwhile.
func (k *task) members() (list []*apitask.ProcessInfo, ok bool, err error) {
	k.mu.Lock()
	init := k.init.started
	execs := map[int]string{}
	for id, p := range k.execs {
		if !p.over() && p.started.PID != 0 {
			execs[p.started.PID] = id
		}
	}
	k.mu.Unlock()
	group, err := cgroup.Of(init.PID)
	if lifeOf(init.PID, init.StartTime) != alive || errors.Is(err, cgroup.ErrNone) {
		return nil, false, nil
	}
	var pids []int
	if err == nil {
		pids, err = group.Processes()
	}
	if err != nil {
		return nil, false, fmt.Errorf("list pids: task %q, without its shim: %w", k.id, err)
	}
	for _, pid := range pids {
		info := &apitask.ProcessInfo{Pid: uint32(pid)}
		if id, ok := execs[pid]; ok {
			if info.Info, err = protobuf.MarshalAny(&runc.ProcessDetails{ExecId: id}); err != nil {
				return nil, false, err
			}
		}
		list = append(list, info)
	}
	return list, true, nil
}
