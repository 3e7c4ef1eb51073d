package restart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/internal/labels"
)

// world is a store and a runtime of one namespace, in memory.
type world struct {
	t       *testing.T
	journal *events.Journal

	mu      sync.Mutex
	records map[string]*containers.Container
	tasks   map[string]*apitask.Process
	exits   map[string]chan struct{}
	pid     uint32
	did     []string // what was done, with the seconds since the start
	start   time.Time
	refuse  error           // of Create
	onStart func(id string) // called without the mutex, at the end of Start
}

func newWorld(t *testing.T) *world {
	j, err := events.Open(events.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		t: t, journal: j, start: time.Now(),
		records: map[string]*containers.Container{}, tasks: map[string]*apitask.Process{}, exits: map[string]chan struct{}{},
	}
}

// engine runs an engine until stop is called.
func (w *world) engine() (e *Engine, stop func()) {
	e = &Engine{Store: w, Tasks: w, Journal: w.journal}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	synctest.Wait()
	return e, func() { cancel(); <-done }
}

func (w *world) note(format string, args ...any) {
	at := time.Since(w.start).Round(10 * time.Millisecond)
	w.did = append(w.did, fmt.Sprintf(format, args...)+" "+at.String())
}

func (w *world) restartClock() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start = time.Now()
}

// take gives what was done since the last call.
func (w *world) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	did := strings.Join(w.did, ", ")
	w.did = nil
	return did
}

func (w *world) publish(topic string, e proto.Message) {
	if err := w.journal.Publish(context.Background(), "ns", topic, e); err != nil {
		w.t.Error(err)
	}
}

// label makes or changes a container: fields are those of the labels behind
// their prefix.
func (w *world) label(id string, fields ...string) {
	w.mu.Lock()
	c := w.records[id]
	if c == nil {
		c = &containers.Container{Id: id, Labels: map[string]string{}}
		w.records[id] = c
	}
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		c.Labels["containerd.io/restart."+key] = value
	}
	w.mu.Unlock()
	w.publish("/containers/update", &apievents.ContainerUpdate{Id: id})
}

func (w *world) remove(id string) {
	w.mu.Lock()
	delete(w.records, id)
	w.mu.Unlock()
	w.publish("/containers/delete", &apievents.ContainerDelete{Id: id})
}

// live makes a task that runs.
func (w *world) live(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pid++
	w.tasks[id] = &apitask.Process{Id: id, Pid: w.pid, Status: apitask.Status_RUNNING, Stdout: "file:///log/" + id}
	w.exits[id] = make(chan struct{})
}

// exit ends a task.
func (w *world) exit(id string, status uint32) {
	w.mu.Lock()
	t := w.tasks[id]
	t.Status, t.ExitStatus, t.ExitedAt = apitask.Status_STOPPED, status, timestamppb.Now()
	close(w.exits[id])
	pid := t.Pid
	w.mu.Unlock()
	w.publish("/tasks/exit", &apievents.TaskExit{ContainerId: id, Id: id, Pid: pid, ExitStatus: status})
}

func (w *world) Labelled(_ context.Context, label string) (found []Container, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.records)) {
		if w.records[id].Labels[label] != "" {
			found = append(found, Container{"ns", id})
		}
	}
	return found, nil
}

func (w *world) Get(_ context.Context, _, id string) (*containers.Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.records[id]
	if c == nil {
		return nil, errdefs.ErrNotFound
	}
	return proto.CloneOf(c), nil
}

func (w *world) SetLabels(_ context.Context, _, id string, set map[string]string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.records[id]
	if c == nil {
		return errdefs.ErrNotFound
	}
	for key, value := range set {
		c.Labels[key] = value
		if value == "" {
			delete(c.Labels, key)
		}
	}
	return nil
}

func (w *world) Rootfs(context.Context, string, *containers.Container) ([]*types.Mount, error) {
	return []*types.Mount{{Type: "bind", Source: "/layer"}}, nil
}

func (w *world) Known(_, id string) *apitask.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[id] == nil {
		return nil
	}
	return proto.CloneOf(w.tasks[id])
}

func (w *world) Create(_ context.Context, _ string, _ *containers.Container, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		w.note("refused %s", r.ContainerId)
		return nil, w.refuse
	}
	if w.tasks[r.ContainerId] != nil {
		return nil, errdefs.ErrAlreadyExists
	}
	w.pid++
	w.tasks[r.ContainerId] = &apitask.Process{Id: r.ContainerId, Pid: w.pid, Status: apitask.Status_CREATED, Stdout: r.Stdout}
	w.exits[r.ContainerId] = make(chan struct{})
	return &tasks.CreateTaskResponse{Pid: w.pid}, nil
}

func (w *world) Start(_ context.Context, _ string, r *tasks.StartRequest) (*tasks.StartResponse, error) {
	w.mu.Lock()
	t := w.tasks[r.ContainerId]
	t.Status = apitask.Status_RUNNING
	w.note("start %s > %s", t.Id, t.Stdout)
	then, pid := w.onStart, t.Pid
	w.mu.Unlock()
	if then != nil {
		then(r.ContainerId)
	}
	return &tasks.StartResponse{Pid: pid}, nil
}

func (w *world) Kill(_ context.Context, _ string, r *tasks.KillRequest) error {
	w.mu.Lock()
	t := w.tasks[r.ContainerId]
	if t == nil || t.Status == apitask.Status_STOPPED {
		w.mu.Unlock()
		return errdefs.ErrNotFound
	}
	w.note("kill %s %d", t.Id, r.Signal)
	w.mu.Unlock()
	if r.Signal == 9 {
		w.exit(r.ContainerId, 137)
	}
	return nil
}

func (w *world) Wait(ctx context.Context, _ string, r *tasks.WaitRequest) (*tasks.WaitResponse, error) {
	w.mu.Lock()
	done := w.exits[r.ContainerId]
	w.mu.Unlock()
	if done == nil {
		return nil, errdefs.ErrNotFound
	}
	select {
	case <-done:
		return &tasks.WaitResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *world) Delete(_ context.Context, _ string, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[r.ContainerId] == nil {
		return nil, errdefs.ErrNotFound
	}
	delete(w.tasks, r.ContainerId)
	return &tasks.DeleteResponse{}, nil
}

// story runs a test with a clock of its own.
func story(t *testing.T, tell func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		tell(t, w)
		if err := w.journal.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) after(d time.Duration, want string) {
	w.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := w.take(); got != want {
		w.t.Errorf("after %s: %q, want %q", time.Since(w.start), got, want)
	}
}

// TestBackoff ends a container at once, again and again: the pauses double, and
// begin anew once it has run for a while.
func TestBackoff(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=running", "policy=always")
		_, stop := w.engine()
		defer stop()
		w.exit("a", 1)
		w.after(time.Second, "start a > file:///log/a 100ms")
		w.exit("a", 1)
		w.after(time.Second, "start a > file:///log/a 1.2s")
		w.exit("a", 1)
		w.after(time.Second, "start a > file:///log/a 2.4s")
		for range 20 {
			w.exit("a", 0)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		}
		w.take()
		// It ran for two minutes each time.
		w.restartClock()
		w.exit("a", 0)
		w.after(time.Second, "start a > file:///log/a 100ms")
		for range 12 { // that grow to a minute
			w.exit("a", 1)
			time.Sleep(time.Minute)
			synctest.Wait()
			if w.take() == "" {
				t.Error("not restarted within a minute")
			}
		}
		if got := w.records["a"].Labels[labels.RestartCount]; got == "" {
			t.Error("not counted")
		}
	})
}

// TestOnFailure restarts three times and no more, and not after success.
func TestOnFailure(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=running", "policy=on-failure:3", "loguri=log:///l")
		_, stop := w.engine()
		defer stop()
		w.exit("a", 5)
		w.after(time.Second, "start a > log:///l 100ms")
		for range 2 {
			w.exit("a", 5)
			time.Sleep(time.Minute)
		}
		w.take()
		w.exit("a", 5)
		w.after(5*time.Minute, "")
		w.live("b")
		w.label("b", "status=running", "policy=on-failure")
		w.exit("b", 0)
		w.after(5*time.Minute, "")
		if got := w.records["a"].Labels; got[labels.RestartCount] != "3" || got[pendingLabel] != "" {
			t.Error(got)
		}
	})
}

// TestExplicitStop never runs a container again that somebody has stopped, be it
// in the pause before the restart or in the middle of it.
func TestExplicitStop(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=running", "policy=always")
		_, stop := w.engine()
		defer stop()
		w.label("a", "explicitly-stopped=true")
		w.exit("a", 143)
		w.after(time.Minute, "")
		w.label("a", "explicitly-stopped=false")
		w.restartClock()
		w.after(time.Second, "start a > file:///log/a 100ms")
		w.exit("a", 1)
		time.Sleep(50 * time.Millisecond) // of the pause
		w.label("a", "explicitly-stopped=true")
		w.after(time.Minute, "")

		w.mu.Lock()
		w.onStart = func(id string) { w.label(id, "explicitly-stopped=true") }
		w.mu.Unlock()
		w.label("a", "explicitly-stopped=false")
		w.restartClock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.take(); !strings.HasPrefix(got, "start a") || !strings.Contains(got, "kill a 9") || w.Known("ns", "a") != nil {
			t.Error(got, w.Known("ns", "a"))
		}
	})
}

// TestRemoved removes a container while it is being restarted: its task is ended,
// since nobody else could reach it.
func TestRemoved(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=running", "policy=always")
		e, stop := w.engine()
		defer stop()
		w.mu.Lock()
		w.onStart = w.remove
		w.mu.Unlock()
		w.exit("a", 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.Known("ns", "a") != nil {
			t.Error("its task lives")
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.keepers) != 0 {
			t.Error(e.keepers)
		}
	})
}

// TestStopWanted ends what is to be stopped, by force if need be.
func TestStopWanted(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=stopped")
		_, stop := w.engine()
		defer stop()
		w.after(time.Minute, "kill a 15 0s, kill a 9 10s")
	})
}

// TestFailures shows a container that can't be made, and goes on trying.
func TestFailures(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.refuse = errors.New("no such layer")
		w.live("a")
		w.label("a", "status=running", "policy=unless-stopped")
		w.label("bad", "status=running", "policy=sometimes")
		e, stop := w.engine()
		defer stop()
		w.exit("a", 1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := w.take(); got != "refused a 100ms, refused a 300ms, refused a 700ms, refused a 1.5s" {
			t.Error(got)
		}
		f := e.Failures()
		if len(f) != 2 || f[0].ID != "a" || !strings.Contains(f[0].Err.Error(), "no such layer") || f[1].ID != "bad" {
			t.Errorf("%+v", f)
		}
		w.mu.Lock()
		w.refuse = nil
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if f := e.Failures(); len(f) != 1 {
			t.Errorf("%+v", f)
		}
		if w.Known("ns", "a").GetStatus() != apitask.Status_RUNNING {
			t.Error("not restarted")
		}
	})
}

// TestDaemonRestart has the engine end in a pause, and another one go on; and one
// that finds containers without a task, as after a reboot.
func TestDaemonRestart(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.label("a", "status=running", "policy=always")
		_, stop := w.engine()
		w.exit("a", 1)
		stop()
		w.label("b", "status=running", "policy=unless-stopped")
		w.label("c", "status=running", "policy=on-failure")
		w.label("d", "status=running", "policy=on-failure")
		w.mu.Lock()
		w.records["d"].Labels[pendingLabel] = "true"
		w.mu.Unlock()
		_, stop = w.engine()
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		got := w.take()
		for _, want := range []string{"start a", "start b", "start d"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("%q: not one %s", got, want)
			}
		}
		if strings.Contains(got, "start c") {
			t.Errorf("%q: c may have ended well", got)
		}
	})
}

// TestCreated starts a task that a daemon left created, but gives a client time
// to do so itself.
func TestCreated(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		w.live("a")
		w.tasks["a"].Status = apitask.Status_CREATED
		w.label("a", "status=running", "policy=always")
		_, stop := w.engine()
		defer stop()
		w.after(9*time.Second, "")
		w.after(time.Minute, "start a > file:///log/a 10.1s")
	})
}
