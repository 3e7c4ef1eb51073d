package restart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/labels"
)

const statusLabel = labels.RestartStatus

// keeper keeps one container.
type keeper struct {
	engine *Engine
	Container
	kick chan struct{}

	// The engine's mu guards these.
	ended   bool  // news of an exit have come
	failure error // of the last try; nil if it worked
	since   time.Time
	next    time.Time

	// What follows is the keeper's own.
	tries   int       // restarts since the container last ran for long
	due     time.Time // when it is to be restarted; zero: not decided
	began   time.Time // when it was started, or first seen to run
	settles time.Time // since when it looks like something that passes
	started uint32    // pid of the task that the keeper started last
}

// run looks again and again, until the container is not to be kept any more.
func (k *keeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.kick:
		}
		pause, err := k.look(ctx)
		if errors.Is(err, errGone) && k.leave(ctx) {
			return
		}
		k.note(err, pause)
		timer.Reset(pause)
	}
}

// leave takes the keeper away, unless there was news meanwhile.
func (k *keeper) leave(ctx context.Context) bool {
	k.disown(ctx)
	k.engine.mu.Lock()
	defer k.engine.mu.Unlock()
	if len(k.kick) > 0 {
		return false
	}
	delete(k.engine.keepers, k.Container)
	return true
}

// disown ends a task that the keeper itself has started for a container whose
// record has gone meanwhile: nobody else could reach it.
func (k *keeper) disown(ctx context.Context) {
	e := k.engine
	if _, err := e.Store.Get(ctx, k.Namespace, k.ID); !errdefs.IsNotFound(err) || k.started == 0 {
		return
	}
	task := e.Tasks.Known(k.Namespace, k.ID)
	if task == nil || task.GetPid() != k.started {
		return
	}
	e.Log.Info("container removed while it was being restarted, its task is ended", "namespace", k.Namespace, "id", k.ID)
	if err := k.discard(ctx); err != nil {
		e.Log.Error("task of a removed container not ended", "namespace", k.Namespace, "id", k.ID, "error", err)
	}
}

// note keeps the outcome of a look for Failures, and logs a first failure.
func (k *keeper) note(err error, pause time.Duration) {
	e := k.engine
	if errors.Is(err, errGone) || errors.Is(err, context.Canceled) {
		err = nil
	}
	e.mu.Lock()
	first := err != nil && (k.failure == nil || k.failure.Error() != err.Error())
	if err != nil && k.failure == nil {
		k.since = time.Now()
	}
	k.failure, k.next = err, time.Now().Add(pause)
	e.mu.Unlock()
	if first {
		e.Log.Error("container can't be kept as its labels say; it is tried again", "namespace", k.Namespace, "id", k.ID, "error", err)
	}
}

// look looks at the container once, does what is due, and tells when to look
// again.
func (k *keeper) look(ctx context.Context) (time.Duration, error) {
	e := k.engine
	e.mu.Lock()
	ended := k.ended
	k.ended = false
	e.mu.Unlock()
	record, err := e.Store.Get(ctx, k.Namespace, k.ID)
	if errdefs.IsNotFound(err) {
		return 0, errGone
	}
	if err != nil {
		return e.Every, err
	}
	w, ok, err := readWish(record.GetLabels())
	if !ok {
		return 0, errGone
	}
	if err != nil {
		return e.Every, err
	}
	if ended {
		k.awaitExit(ctx)
	}
	task := e.Tasks.Known(k.Namespace, k.ID)
	k.remember(task)
	todo, why := decide(w, task)
	switch todo {
	case end:
		return e.Every, k.end(ctx, record)
	case begin:
		if !w.pending && !k.settled() { // whoever made it is about to start it
			return e.Every, nil
		}
	case run:
		if task == nil && !w.pending && k.failure == nil && !k.settled() { // whoever made the container is about to make it
			return e.Every, nil
		}
	default:
		if task.GetStatus() == apitask.Status_UNKNOWN && task != nil { // a restart may go on from here
			return soon, nil
		}
		k.due, k.settles = time.Time{}, time.Time{}
		if w.pending {
			return e.Every, e.Store.SetLabels(ctx, k.Namespace, k.ID, map[string]string{pendingLabel: ""})
		}
		return e.Every, nil
	}
	if k.due.IsZero() {
		k.due = time.Now().Add(k.delay())
	}
	if left := time.Until(k.due); left > 0 {
		return left, k.failure
	}
	k.due, k.settles = time.Time{}, time.Time{}
	k.tries++
	if err := k.restart(ctx, record, w, task, todo); err != nil {
		k.due = time.Now().Add(k.delay())
		return time.Until(k.due), err
	}
	e.Log.Info("container restarted", "namespace", k.Namespace, "id", k.ID, "reason", why, "restarts", w.count+1)
	return 0, nil // the label may have changed meanwhile
}

// soon is when a container is looked at again of whose task it is not known how it
// stands: its shim is being asked, or a create that came to nothing undone.
const soon = time.Second

// exitTime bounds the wait for an exit to be known of which the event has come.
const exitTime = 5 * time.Second

// awaitExit waits until the exit is known to whoever is asked about the task.
func (k *keeper) awaitExit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, exitTime)
	defer cancel()
	_, _ = k.engine.Tasks.Wait(ctx, k.Namespace, &tasks.WaitRequest{ContainerId: k.ID}) // what there is to know is looked at
}

// remember notes for how long the container has run.
func (k *keeper) remember(task *apitask.Process) {
	switch {
	case task == nil || task.GetStatus() == apitask.Status_CREATED || task.GetStatus() == apitask.Status_UNKNOWN:
	case task.GetStatus() != apitask.Status_STOPPED:
		if k.began.IsZero() {
			k.began = time.Now()
		}
		if time.Since(k.began) >= k.engine.Steady {
			k.tries = 0
		}
	case !k.began.IsZero():
		if task.GetExitedAt().AsTime().Sub(k.began) >= k.engine.Steady {
			k.tries = 0
		}
		k.began = time.Time{}
	}
}

// settled tells whether what may pass by itself has lasted.
func (k *keeper) settled() bool {
	if k.settles.IsZero() {
		k.settles = time.Now()
	}
	return time.Since(k.settles) >= k.engine.Every
}

// delay is the pause before the next try.
func (k *keeper) delay() time.Duration {
	d := k.engine.First
	for range min(k.tries, 32) {
		d = min(2*d, k.engine.Most)
	}
	return d
}

// restart makes the task anew, or only starts it, and undoes that if somebody
// has stopped the container meanwhile.
func (k *keeper) restart(ctx context.Context, record *containers.Container, w wish, task *apitask.Process, todo action) error {
	e := k.engine
	if !w.pending {
		if err := e.Store.SetLabels(ctx, k.Namespace, k.ID, map[string]string{pendingLabel: "true"}); err != nil {
			return err
		}
	}
	if todo == run {
		if task != nil {
			_, err := e.Tasks.Delete(ctx, k.Namespace, &tasks.DeleteTaskRequest{ContainerId: k.ID})
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		request, err := k.request(ctx, record, w, task)
		if err != nil {
			return err
		}
		if _, err = e.Tasks.Create(ctx, k.Namespace, record, request); err != nil {
			if errdefs.IsAlreadyExists(err) {
				return nil // somebody was faster
			}
			return err
		}
	}
	reply, err := e.Tasks.Start(ctx, k.Namespace, &tasks.StartRequest{ContainerId: k.ID})
	if err != nil {
		return errors.Join(err, k.discard(context.WithoutCancel(ctx)))
	}
	k.started, k.began = reply.GetPid(), time.Now()
	now, err := e.Store.Get(ctx, k.Namespace, k.ID)
	if errdefs.IsNotFound(err) {
		k.disown(ctx)
		return nil
	}
	if err == nil {
		if wanted, ok, err := readWish(now.GetLabels()); ok && err == nil && wanted.stopped {
			return k.discard(ctx)
		}
	}
	set := map[string]string{labels.RestartCount: strconv.Itoa(w.count + 1), pendingLabel: ""}
	err = e.Store.SetLabels(ctx, k.Namespace, k.ID, set)
	if errdefs.IsNotFound(err) {
		return nil // the next look disowns it
	}
	return err
}

// request is the call that makes the task anew: with the root file system of the
// container, and the output where its label says, or else where it went before,
// unless that was a client's fifo.
func (k *keeper) request(ctx context.Context, record *containers.Container, w wish, task *apitask.Process) (*tasks.CreateTaskRequest, error) {
	rootfs, err := k.engine.Store.Rootfs(ctx, k.Namespace, record)
	if err != nil {
		return nil, fmt.Errorf("root file system of container %q: %w", k.ID, err)
	}
	r := &tasks.CreateTaskRequest{ContainerId: k.ID, Rootfs: rootfs}
	var s specs.Spec
	if json.Unmarshal(record.GetSpec().GetValue(), &s) == nil && s.Process != nil {
		r.Terminal = s.Process.Terminal
	}
	switch {
	case w.log != "":
		r.Stdout, r.Stderr = w.log, w.log
	case task != nil && isURI(task.GetStdout()):
		r.Stdout, r.Stderr = task.GetStdout(), task.GetStderr()
	}
	if r.Terminal {
		r.Stderr = ""
	}
	return r, nil
}

// isURI tells whether output goes to something that is there without a client.
func isURI(stdio string) bool {
	scheme, _, ok := strings.Cut(stdio, "://")
	return ok && scheme != "fifo"
}

// end asks a container to end, and kills it if it does not.
func (k *keeper) end(ctx context.Context, record *containers.Container) error {
	e := k.engine
	e.Log.Info("container is to be stopped", "namespace", k.Namespace, "id", k.ID)
	err := e.Tasks.Kill(ctx, k.Namespace, &tasks.KillRequest{ContainerId: k.ID, Signal: uint32(stopSignal(record))})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		waiting, cancel := context.WithTimeout(ctx, e.Grace)
		defer cancel()
		if _, err = e.Tasks.Wait(waiting, k.Namespace, &tasks.WaitRequest{ContainerId: k.ID}); err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	err = e.Tasks.Kill(ctx, k.Namespace, &tasks.KillRequest{ContainerId: k.ID, Signal: uint32(unix.SIGKILL), All: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// stopSignalLabel is where berth's command keeps the signal that asks a
// container to end.
const stopSignalLabel = "io.berth.stop-signal"

func stopSignal(record *containers.Container) unix.Signal {
	text := record.GetLabels()[stopSignalLabel]
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n)
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if signal := unix.SignalNum(name); signal != 0 {
		return signal
	}
	return unix.SIGTERM
}

// discard ends and deletes the task.
func (k *keeper) discard(ctx context.Context) error {
	e := k.engine
	ctx, cancel := context.WithTimeout(ctx, e.Grace)
	defer cancel()
	err := e.Tasks.Kill(ctx, k.Namespace, &tasks.KillRequest{ContainerId: k.ID, Signal: uint32(unix.SIGKILL), All: true})
	if err == nil {
		_, err = e.Tasks.Wait(ctx, k.Namespace, &tasks.WaitRequest{ContainerId: k.ID})
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err = e.Tasks.Delete(ctx, k.Namespace, &tasks.DeleteTaskRequest{ContainerId: k.ID})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
