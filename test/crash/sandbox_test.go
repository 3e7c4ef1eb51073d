package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
)

// boxLife is a sandbox, and a container that joins it by the address of its task
// API: made, run, ended and removed, whoever is killed meanwhile. A sandbox whose
// shim was killed is shut down and made again; its container is supervised on.
func (s *slot) boxLife() {
	s.round++
	m := &model{
		id:   fmt.Sprintf("%s%d-%d", s.mark, s.number, s.round),
		kind: kind(s.rand.IntN(3)), code: 1 + uint32(s.rand.IntN(120)), runtime: client.DefaultRuntime,
	}
	m.log = filepath.Join(s.daemon.Dir, m.id+".log")
	box := m.id + "-box"
	m.starts = s.born(m.id)
	s.makeContainer(m)
	s.joinBox(m, box)
	s.made(m.id, m.starts)
	s.count("life in a sandbox")
	if s.rand.IntN(4) > 0 {
		s.start(m)
	}
	if m.started {
		for range s.rand.IntN(3) {
			s.step(m)
		}
		s.finish(m)
	}
	shutFirst := s.rand.IntN(4) == 0
	if shutFirst {
		s.shutBox(m, box)
	}
	s.delete(m)
	s.mu.Lock()
	s.exited[m.id] = m.ended != nil
	s.mu.Unlock()
	s.shutBox(m, box)
	s.remove(m)
	os.Remove(m.log)
}

// joinBox makes the sandbox, and the task in it.
func (s *slot) joinBox(m *model, box string) {
	s.again(m, "creating the task in a sandbox", func(c context.Context) (bool, error) {
		if state := s.state(m); state != nil {
			switch {
			case state.GetStatus() == task.Status_CREATED:
				return true, nil
			case state.GetStatus() == task.Status_STOPPED && s.doubtful(m.id):
				return true, nil // its shim died, and it; delete tells
			case state.GetStatus() != task.Status_UNKNOWN:
				s.fail(m, "created, it is %s", state.GetStatus())
			}
			return false, errors.New("it is not known how it stands")
		}
		m.starts = s.born(m.id) // the shim may be one of a daemon with an armed point
		address, err := s.readied(c, box)
		if err != nil {
			return false, err
		}
		container, err := s.client.Container(c, m.id)
		if err != nil {
			return false, err
		}
		_, err = container.NewTask(c, client.TaskOptions{LogURI: "file://" + m.log, TaskAPI: address})
		if err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsFailedPrecondition(err) && !s.away(m, err) {
			s.fail(m, "create: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), "injected fault") { // the sandbox's shim may be the one with the point
			s.shutBox(m, box)
		}
		return err == nil, err
	})
}

// readied gives the address of a sandbox that is ready, and makes it so if need be.
func (s *slot) readied(c context.Context, box string) (string, error) {
	boxes := s.client.SandboxController()
	state, err := boxes.Status(c, &sandbox.ControllerStatusRequest{SandboxId: box, Sandboxer: "shim"})
	if err != nil || state.GetState() == "SANDBOX_READY" {
		return state.GetAddress(), err
	}
	if state.GetSandboxId() != "" { // one that came to nothing
		_, err = boxes.Shutdown(c, &sandbox.ControllerShutdownRequest{SandboxId: box, Sandboxer: "shim"})
		if err != nil && !errdefs.IsNotFound(err) {
			return "", err
		}
	}
	_, err = boxes.Create(c, &sandbox.ControllerCreateRequest{SandboxId: box, Sandboxer: "shim", Sandbox: &types.Sandbox{SandboxId: box}})
	if err != nil {
		return "", err
	}
	started, err := boxes.Start(c, &sandbox.ControllerStartRequest{SandboxId: box, Sandboxer: "shim"})
	return started.GetAddress(), err
}

// shutBox removes a sandbox.
func (s *slot) shutBox(m *model, box string) {
	s.again(m, "shutting its sandbox down", func(c context.Context) (bool, error) {
		_, err := s.client.SandboxController().Shutdown(c, &sandbox.ControllerShutdownRequest{SandboxId: box, Sandboxer: "shim"})
		if errdefs.IsNotFound(err) {
			return true, nil
		}
		return err == nil, err
	})
}
