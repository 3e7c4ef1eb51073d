package crash

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
)

// exec runs a further process to its end, and compares its exit status. It comes
// to nothing if init ends meanwhile, or the shim is dead.
func (s *slot) exec(m *model) {
	id := fmt.Sprintf("x%d", s.rand.Uint32())
	code := 1 + uint32(s.rand.IntN(120))
	process := &specs.Process{
		Cwd: "/", Args: []string{"sh", "-c", fmt.Sprintf("exit %d", code)}, Env: []string{"PATH=/bin"},
	}
	vain := 0
	s.again(m, "exec", func(c context.Context) (bool, error) {
		p := s.client.Process(m.id, id)
		state, err := p.State(c)
		if errdefs.IsNotFound(err) {
			if _, err = s.client.Exec(c, m.id, id, process, client.TaskOptions{}); err == nil {
				state, err = p.State(c)
			}
		}
		if err == nil && state.GetStatus() == task.Status_CREATED {
			_, err = p.Start(c)
		}
		if err != nil {
			vain++
			return s.excused(m, "exec", err, vain), err
		}
		exit, err := p.Wait(c)
		if err != nil {
			vain++
			return s.excused(m, "wait for exec", err, vain), err
		}
		s.compareExec(m, id, exit.Status, code)
		_, err = s.client.Tasks().DeleteProcess(c, &tasks.DeleteProcessRequest{ContainerId: m.id, ExecId: id})
		if err != nil && !errdefs.IsNotFound(err) {
			vain++
			return s.excused(m, "delete exec", err, vain), err
		}
		s.count("exec compared")
		return true, nil
	})
}

// excused tells whether an exec may come to nothing for an error, after some
// tries.
func (s *slot) excused(m *model, what string, err error, tries int) bool {
	if m.kind == timed { // init ends meanwhile; until that is known, another try shows
		state := s.state(m)
		return state != nil && state.GetStatus() == task.Status_STOPPED
	}
	if !s.away(m, err) && !strings.Contains(err.Error(), "stopped") {
		s.fail(m, "%s: %v", what, err)
	}
	return s.doubtful(m.id) && tries > 5
}

func (s *slot) compareExec(m *model, id string, got, want uint32) {
	switch {
	case got == want:
	case m.kind == timed && got == 137: // init ended, and the exec with it
	case got == 255 && s.doubtful(m.id) && s.restarted() > m.starts:
		s.count("exec unobserved, shim and daemon were away")
	default:
		s.fail(m, "exec %s: exit status %d, want %d", id, got, want)
	}
}
