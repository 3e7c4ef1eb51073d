package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/labels"
)

// quiet is for how long a container has to have been down to count as stopped: by
// then whoever had begun to restart it has undone that.
const quiet = 1500 * time.Millisecond

// keptLife is a container with a restart policy, from its making to its removal:
// whenever it ends it has to run again, and once somebody has stopped it it has
// not, whoever is killed.
func (s *slot) keptLife() {
	s.round++
	policies := []string{"always", "unless-stopped", "on-failure"}
	m := &model{
		id:   fmt.Sprintf("%s%d-%d", s.mark, s.number, s.round),
		kind: []kind{sleeper, timed}[s.rand.IntN(2)], code: 1 + uint32(s.rand.IntN(120)), runtime: client.DefaultRuntime,
	}
	m.log = filepath.Join(s.daemon.Dir, m.id+".log")
	policy := policies[s.rand.IntN(len(policies))]
	if policy == "on-failure" && s.rand.IntN(2) == 0 {
		m.kind, m.code = termer, 0
	}
	m.labels = map[string]string{labels.RestartStatus: "running", labels.RestartPolicy: policy, labels.RestartLogURI: "file://" + m.log}
	m.starts = s.born(m.id)
	s.makeContainer(m)
	s.count("life with a policy")
	pid := s.running(m, 0)
	runs := 1
	for range 1 + s.rand.IntN(3) {
		if m.kind == termer {
			s.said(m, runs)
		}
		runs++
		if m.kind != timed {
			s.signal(m, pid, unix.SIGKILL)
		}
		pid = s.running(m, pid)
		s.count("ran again")
	}
	if m.kind != termer || !s.said(m, runs) || !s.endWell(m, pid) {
		s.stopKept(m)
	}
	s.deleteKept(m)
	s.mu.Lock()
	s.exited[m.id] = true
	s.mu.Unlock()
	s.remove(m)
	os.Remove(m.log)
}

// running waits until the container runs as another process than before. The
// first time it is the client that makes it run, after that nobody but the daemon.
func (s *slot) running(m *model, before uint32) (pid uint32) {
	s.again(m, fmt.Sprintf("running, after process %d,", before), func(c context.Context) (bool, error) {
		state := s.state(m)
		if s.ran(m, state, before) {
			pid = state.GetPid()
			return true, nil
		}
		var err error
		switch {
		case before != 0: // wait
			err = fmt.Errorf("it is %s as process %d", state.GetStatus(), state.GetPid())
		case state == nil:
			var container *client.Container
			if container, err = s.client.Container(c, m.id); err == nil {
				_, err = container.NewTask(c, client.TaskOptions{LogURI: "file://" + m.log})
			}
		case state.GetStatus() == task.Status_CREATED:
			_, err = s.client.Process(m.id, "").Start(c)
			if err != nil && s.doubtful(m.id) { // without a shim it can't be
				_ = s.client.Process(m.id, "").Signal(c, unix.SIGKILL) // it may have ended
				_, derr := s.client.Tasks().Delete(c, &tasks.DeleteTaskRequest{ContainerId: m.id})
				err = errors.Join(err, derr)
			}
		}
		return false, err
	})
	return pid
}

// ran tells whether a state shows that the container ran after a process. One
// that ends by itself may have ended again.
func (s *slot) ran(m *model, state *task.Process, before uint32) bool {
	if state == nil || state.GetPid() == before || state.GetPid() == 0 {
		return false
	}
	switch state.GetStatus() {
	case task.Status_RUNNING:
		return true
	case task.Status_STOPPED:
		return m.kind == timed && state.GetExitStatus() == m.code
	}
	return false
}

// signal ends a process of the container, unless that has ended.
func (s *slot) signal(m *model, pid uint32, signal unix.Signal) {
	s.again(m, "killing", func(c context.Context) (bool, error) {
		if state := s.state(m); state == nil || state.GetPid() != pid || state.GetStatus() == task.Status_STOPPED {
			return true, nil
		}
		err := s.client.Process(m.id, "").Signal(c, signal)
		if err != nil && !errdefs.IsNotFound(err) && !s.away(m, err) {
			s.fail(m, "kill: %v", err)
		}
		return false, err
	})
}

// stopKept stops the container as clients do: the label first, then the process.
// From then on nothing may run it for good: a restart that had begun is undone.
func (s *slot) stopKept(m *model) {
	s.again(m, "labelling it as stopped", func(c context.Context) (bool, error) {
		_, err := s.client.Containers().Update(c, &containers.UpdateContainerRequest{
			Container:  &containers.Container{Id: m.id, Labels: map[string]string{labels.RestartStopped: "true"}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + labels.RestartStopped}},
		})
		return err == nil, err
	})
	if state := s.state(m); alive(state) {
		s.signal(m, state.GetPid(), unix.SIGKILL)
	}
	var last time.Time
	s.again(m, "staying down once it was stopped", func(context.Context) (bool, error) {
		state := s.state(m)
		if alive(state) {
			last = time.Time{}
			return false, fmt.Errorf("it is %s as process %d", state.GetStatus(), state.GetPid())
		}
		if last.IsZero() {
			last = time.Now()
		}
		return time.Since(last) > quiet, errors.New("it was down for a moment")
	})
	for until := time.Now().Add(time.Duration(s.rand.IntN(2000)) * time.Millisecond); time.Now().Before(until); time.Sleep(look) {
		if state := s.state(m); alive(state) {
			s.fail(m, "was stopped, and runs again as process %d", state.GetPid())
		}
	}
	s.count("stayed stopped")
}

// said waits until the program has said as often as it ran that it heeds signals.
// Without a shim nobody passes that on.
func (s *slot) said(m *model, runs int) bool {
	for deadline := time.Now().Add(settle); time.Now().Before(deadline); time.Sleep(look) {
		data, err := os.ReadFile(m.log)
		if err == nil && strings.Count(string(data), "ready\n") >= runs {
			return true
		}
		if s.doubtful(m.id) {
			return false
		}
	}
	s.fail(m, "its output does not come")
	return false
}

// endWell has a container whose policy is on-failure end with 0, and sees that it
// stays so. It tells whether it came to that: a status that nobody could observe is
// no success.
func (s *slot) endWell(m *model, pid uint32) bool {
	s.signal(m, pid, unix.SIGTERM)
	for until := time.Now().Add(time.Duration(s.rand.IntN(3000)) * time.Millisecond); time.Now().Before(until); time.Sleep(look) {
		state := s.state(m)
		if state.GetStatus() == task.Status_STOPPED && state.GetExitStatus() == 0 && state.GetPid() == pid {
			continue
		}
		if s.doubtful(m.id) {
			return false
		}
		s.fail(m, "ended with 0 as process %d, and is %s with %d as process %d", pid, state.GetStatus(), state.GetExitStatus(), state.GetPid())
	}
	s.count("ended well")
	return true
}

// alive tells whether a state is that of a program that runs.
func alive(state *task.Process) bool {
	return state != nil && state.GetStatus() != task.Status_STOPPED && state.GetStatus() != task.Status_CREATED
}

// deleteKept deletes the task, if there is one.
func (s *slot) deleteKept(m *model) {
	s.again(m, "deleting the task", func(c context.Context) (bool, error) {
		_, err := s.client.Tasks().Delete(c, &tasks.DeleteTaskRequest{ContainerId: m.id})
		if err == nil || errdefs.IsNotFound(err) {
			return true, nil
		}
		if !s.away(m, err) {
			s.fail(m, "delete: %v", err)
		}
		_ = s.client.Process(m.id, "").Signal(c, unix.SIGKILL) // one that was created for a restart, and has no shim
		return false, err
	})
	if state := s.state(m); state != nil {
		s.fail(m, "deleted, it is there again as %s", state.GetStatus())
	}
}
