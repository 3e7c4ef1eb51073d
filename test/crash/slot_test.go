package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/spec"
	"github.com/berthd/berth/test/harness"
)

// Bounds.
const (
	callTime = time.Minute            // of one call, the daemon's absence included
	settle   = 90 * time.Second       // until a state that has to come has come
	look     = 50 * time.Millisecond  // between looks
	lapse    = 100 * time.Millisecond // before a call is made again
)

// A slot has one container at a time, and is the only one to touch it.
type slot struct {
	*world
	number int
	round  int
	rand   *rand.Rand
}

// kind is what a container runs.
type kind int

const (
	sleeper kind = iota // ends by SIGKILL alone
	termer              // ends by SIGTERM with a code of its own
	timed               // ends by itself with a code of its own
)

// model is what is known of a container.
type model struct {
	id      string
	kind    kind
	code    uint32 // of a termer or a timed
	starts  int    // of the daemon when the container was made
	started bool   // for sure
	tried   bool   // a start was asked for
	paused  bool
	killed  bool // SIGKILL was sent
	ended   *client.Exit
	log     string
	labels  map[string]string
	runtime string
}

// fatal marks what is wrong with a container's history. run recovers it.
type fatal struct{ text string }

func (s *slot) fail(m *model, format string, args ...any) {
	panic(fatal{fmt.Sprintf("slot %d, container %s: %s", s.number, m.id, fmt.Sprintf(format, args...))})
}

// run leads one container after the other through its life.
func (s *slot) run() {
	defer func() {
		if f, ok := recover().(fatal); ok {
			s.t.Error(f.text)
		}
	}()
	for time.Now().Before(s.until) && !s.t.Failed() {
		switch s.rand.IntN(8) {
		case 0, 1:
			s.keptLife()
		case 2:
			s.boxLife()
		default:
			s.life()
		}
	}
}

// life is one container from its making to its removal.
func (s *slot) life() {
	s.round++
	m := &model{
		id:   fmt.Sprintf("%s%d-%d", s.mark, s.number, s.round),
		kind: kind(s.rand.IntN(3)), code: 1 + uint32(s.rand.IntN(120)), runtime: client.DefaultRuntime,
	}
	if s.rand.IntN(6) == 0 {
		m.runtime = s.copied
		s.count("life under another's shim")
	}
	m.log = filepath.Join(s.daemon.Dir, m.id+".log")
	m.starts = s.born(m.id)
	s.makeContainer(m)
	s.makeTask(m)
	s.made(m.id, m.starts)
	s.count("life")
	if s.rand.IntN(8) > 0 {
		s.start(m)
	}
	if m.started {
		for range s.rand.IntN(5) {
			s.step(m)
		}
		s.finish(m)
	}
	s.delete(m)
	s.mu.Lock()
	s.exited[m.id] = m.ended != nil
	s.mu.Unlock()
	s.remove(m)
	os.Remove(m.log)
}

// step does something with a container that runs.
func (s *slot) step(m *model) {
	switch s.rand.IntN(4) {
	case 0:
		if !m.paused {
			s.exec(m)
		}
	case 1:
		s.freeze(m, !m.paused)
	case 2:
		s.expect(m)
	case 3:
		time.Sleep(time.Duration(s.rand.IntN(300)) * time.Millisecond)
	}
}

// ctx bounds a call.
func ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callTime)
}

// again calls do until it says that it is done, or settle has passed.
func (s *slot) again(m *model, what string, do func(context.Context) (done bool, err error)) {
	var last error
	for deadline := time.Now().Add(settle); time.Now().Before(deadline); time.Sleep(lapse) {
		c, cancel := ctx()
		done, err := do(c)
		cancel()
		if done {
			return
		}
		if err != nil {
			last = err
		}
	}
	s.fail(m, "%s does not come to an end within %s: %v", what, settle, last)
}

// away tells whether an error says that a call may be made again: the daemon or
// the shim was away, an armed point failed, or it came in between.
func (s *slot) away(m *model, err error) bool {
	return errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "injected fault") || s.doubtful(m.id)
}

func (s *slot) makeContainer(m *model) {
	script := map[kind]string{
		sleeper: "echo ready; exec sleep 1000",
		termer:  fmt.Sprintf("trap 'exit %d' TERM; echo ready; while :; do sleep 1000 & wait $!; done", m.code),
		timed:   fmt.Sprintf("echo ready; sleep 0.%d; exit %d", 1+s.rand.IntN(9), m.code),
	}[m.kind]
	s.again(m, "making the container", func(c context.Context) (bool, error) {
		_, err := s.client.Container(c, m.id)
		if err == nil {
			return true, nil // an earlier try did it
		}
		if !errdefs.IsNotFound(err) {
			return false, err
		}
		// What an earlier try has left that the daemon's end cut off.
		_, err = s.client.Snapshots().Remove(c, &snapshots.RemoveSnapshotRequest{Snapshotter: "overlayfs", Key: m.id})
		if err != nil && !errdefs.IsNotFound(err) {
			return false, err
		}
		leased, end, err := s.client.Lease(c, time.Hour)
		if err != nil {
			return false, err
		}
		_, err = leased.NewContainer(c, client.ContainerOptions{
			ID: m.id, Image: harness.ImageName, Snapshotter: "overlayfs", Runtime: m.runtime,
			Spec: spec.Options{Args: []string{"sh", "-c", script}}, Labels: m.labels,
		})
		return err == nil, errors.Join(err, end())
	})
}

// state asks for the state of init until there is an answer. nil: no task.
func (s *slot) state(m *model) (state *task.Process) {
	s.again(m, "asking for the state", func(c context.Context) (bool, error) {
		var err error
		state, err = s.client.Process(m.id, "").State(c)
		if errdefs.IsNotFound(err) {
			state, err = nil, nil
		}
		return err == nil, err
	})
	return state
}

// makeTask creates the task. After an error there is all of it, or nothing.
func (s *slot) makeTask(m *model) {
	s.again(m, "creating the task", func(c context.Context) (bool, error) {
		container, err := s.client.Container(c, m.id)
		if err != nil {
			return false, err
		}
		_, err = container.NewTask(c, client.TaskOptions{LogURI: "file://" + m.log})
		if err == nil {
			return true, nil
		}
		if errdefs.IsAlreadyExists(err) {
			state := s.state(m)
			if state == nil {
				return false, err // it was being undone
			}
			if state.GetStatus() == task.Status_STOPPED && s.doubtful(m.id) {
				return true, nil // its shim died, and it; delete tells
			}
			if state.GetStatus() != task.Status_CREATED {
				if state.GetStatus() == task.Status_UNKNOWN {
					return false, err
				}
				s.fail(m, "created, it is %s", state.GetStatus())
			}
			return true, nil
		}
		if !s.away(m, err) {
			s.fail(m, "create: %v", err)
		}
		m.starts = s.born(m.id) // the next shim may be one of a daemon with an armed point
		return false, err
	})
}

// start starts init. A container whose shim is dead can't be started; then it
// stays as it is.
func (s *slot) start(m *model) {
	m.tried = true
	hopeless := 0
	s.again(m, "starting", func(c context.Context) (bool, error) {
		_, err := s.client.Process(m.id, "").Start(c)
		if err == nil {
			m.started = true
			return true, nil
		}
		state := s.state(m)
		switch {
		case state == nil:
			s.fail(m, "the task is gone after start: %v", err)
		case state.GetStatus() == task.Status_RUNNING:
			m.started = true
			return true, nil
		case state.GetStatus() == task.Status_STOPPED:
			// It ran and ended, or its shim died before it ran.
			m.started = m.kind == timed && !s.doubtful(m.id)
			if !m.started && !s.doubtful(m.id) {
				s.fail(m, "stopped after start: %v", err)
			}
			return true, nil
		case !s.away(m, err):
			s.fail(m, "start: %v", err)
		case s.doubtful(m.id):
			hopeless++
		}
		return hopeless > 20, err
	})
	if !m.started {
		s.count("start in vain, no shim")
		return
	}
	if m.kind == termer && !s.ready(m) {
		m.kind = sleeper // no telling whether it heeds SIGTERM by now
	}
}

// ready waits until the program says that it runs. Without a shim nobody passes
// that on.
func (s *slot) ready(m *model) bool {
	for deadline := time.Now().Add(settle); time.Now().Before(deadline); time.Sleep(look) {
		if data, err := os.ReadFile(m.log); err == nil && strings.Contains(string(data), "ready\n") {
			return true
		}
		if s.doubtful(m.id) {
			return false
		}
	}
	s.fail(m, "its output does not come")
	return false
}

// expect compares the state with the model.
func (s *slot) expect(m *model) {
	state := s.state(m)
	if state == nil {
		s.fail(m, "the task is gone")
	}
	status := state.GetStatus()
	want := task.Status_RUNNING
	if m.paused {
		want = task.Status_PAUSED
	}
	switch {
	case status == want:
	case status == task.Status_STOPPED && m.kind == timed: // it may have ended while it was being paused
		m.paused = false
		s.checkExit(m, client.Exit{Status: state.GetExitStatus()})
	case s.doubtful(m.id) && status != task.Status_STOPPED:
	default:
		s.fail(m, "state is %s with status %d, want %s", status, state.GetExitStatus(), want)
	}
}

// freeze pauses or resumes.
func (s *slot) freeze(m *model, pause bool) {
	target := task.Status_RUNNING
	if pause {
		target = task.Status_PAUSED
	}
	hopeless := 0
	s.again(m, fmt.Sprintf("getting it %s", target), func(c context.Context) (bool, error) {
		var err error
		if pause {
			_, err = s.client.Tasks().Pause(c, &tasks.PauseTaskRequest{ContainerId: m.id})
		} else {
			_, err = s.client.Tasks().Resume(c, &tasks.ResumeTaskRequest{ContainerId: m.id})
		}
		if err == nil {
			m.paused = pause
			s.count("frozen or thawed")
			return true, nil
		}
		state := s.state(m)
		switch {
		case state == nil:
			s.fail(m, "the task is gone")
		case state.GetStatus() == target:
			m.paused = pause
			return true, nil
		case state.GetStatus() == task.Status_STOPPED && m.kind == timed:
			m.paused = false
			return true, nil
		case !s.away(m, err):
			s.fail(m, "pause %t: %v, it is %s", pause, err, state.GetStatus())
		case s.doubtful(m.id):
			hopeless++
		}
		// A shim that was killed halfway may have done it, or not.
		m.paused = state.GetStatus() == task.Status_PAUSED
		return hopeless > 5, err
	})
}

// finish ends a container and compares its exit.
func (s *slot) finish(m *model) {
	signal := unix.SIGKILL
	switch {
	case m.kind == timed && m.paused:
		s.freeze(m, false)
		if m.paused = s.frozen(m); m.paused {
			m.killed = true // no shim to thaw it
		}
	case m.kind == termer && !m.paused:
		signal = unix.SIGTERM
	default:
		m.killed = true
	}
	if m.kind != timed || m.killed {
		s.again(m, "killing", func(c context.Context) (bool, error) {
			err := s.client.Process(m.id, "").Signal(c, signal)
			if err == nil || errdefs.IsNotFound(err) {
				return true, nil
			}
			if !s.away(m, err) {
				s.fail(m, "kill: %v", err)
			}
			return false, err
		})
	}
	var exit client.Exit
	s.again(m, "waiting for its end", func(c context.Context) (bool, error) {
		var err error
		exit, err = s.client.Process(m.id, "").Wait(c)
		if err != nil && !s.away(m, err) {
			s.fail(m, "wait: %v", err)
		}
		return err == nil, err
	})
	s.checkExit(m, exit)
	m.ended = &exit
	s.count("exit compared")
}

// frozen tells whether a container is paused.
func (s *slot) frozen(m *model) bool {
	state := s.state(m)
	return state != nil && state.GetStatus() == task.Status_PAUSED
}

// checkExit compares an exit status with what the program does. One that nobody
// could observe is only excused where both shim and daemon were away.
func (s *slot) checkExit(m *model, exit client.Exit) {
	var want []uint32
	if m.killed {
		want = append(want, 128+uint32(unix.SIGKILL))
	}
	if m.kind != sleeper {
		want = append(want, m.code)
	}
	for _, status := range want {
		if exit.Status == status {
			return
		}
	}
	if exit.Status == 255 && s.doubtful(m.id) && s.restarted() > m.starts {
		s.count("exit unobserved, shim and daemon were away")
		return
	}
	s.fail(m, "exit status %d, want one of %v", exit.Status, want)
}

// delete deletes the task, whatever state it is in.
func (s *slot) delete(m *model) {
	tried := false
	s.again(m, "deleting the task", func(c context.Context) (bool, error) {
		reply, err := s.client.Tasks().Delete(c, &tasks.DeleteTaskRequest{ContainerId: m.id})
		switch {
		case err == nil && m.ended != nil && reply.GetExitStatus() != m.ended.Status:
			s.fail(m, "delete says status %d, wait said %d", reply.GetExitStatus(), m.ended.Status)
		case err == nil:
			return true, nil
		case errdefs.IsNotFound(err) && (tried || s.doubtful(m.id)):
			return true, nil // the first try did it
		case m.ended == nil && strings.Contains(err.Error(), "cannot delete a running process"):
			// Its shim died, or its start came after all.
			if !m.tried && !s.doubtful(m.id) {
				s.fail(m, "delete: %v", err)
			}
			if kerr := s.client.Process(m.id, "").Signal(c, unix.SIGKILL); kerr != nil && !errdefs.IsNotFound(kerr) && !s.away(m, kerr) {
				s.fail(m, "kill: %v", kerr)
			}
		case !s.away(m, err):
			s.fail(m, "delete: %v", err)
		}
		tried = true
		return false, err
	})
	if state := s.state(m); state != nil {
		s.fail(m, "deleted, it is there again as %s", state.GetStatus())
	}
}

// remove removes container and snapshot.
func (s *slot) remove(m *model) {
	s.again(m, "removing the container", func(c context.Context) (bool, error) {
		err := s.client.Remove(c, m.id, false)
		if errdefs.IsNotFound(err) {
			_, err = s.client.Snapshots().Remove(c, &snapshots.RemoveSnapshotRequest{Snapshotter: "overlayfs", Key: m.id})
			if errdefs.IsNotFound(err) {
				return true, nil
			}
		}
		return err == nil, err
	})
}
