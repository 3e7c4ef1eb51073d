package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// Create starts a shim and makes the container in it, not yet started. After an
// error nothing of it is left.
func (t *Tasks) Create(ctx context.Context, ns string, c *containers.Container, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	return t.CreateFrom(ctx, ns, c, r, nil)
}

// createTask is Create without the start that some restores ask for.
func (t *Tasks) createTask(ctx context.Context, ns string, c *containers.Container, r *tasks.CreateTaskRequest, blobs Blobs) (*tasks.CreateTaskResponse, error) {
	if err := errors.Join(names.Namespace(ns), names.Identifier(r.GetContainerId())); err != nil {
		return nil, err
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	defer t.wg.Done()
	defer t.grace.Hold()()
	id := r.GetContainerId()
	p, err := t.plan(ns, c, r)
	if err != nil {
		return nil, fmt.Errorf("create task %q: %w", id, err)
	}
	if err := t.makeWay(ctx, ns, id); err != nil {
		return nil, fmt.Errorf("create task %q: %w", id, err)
	}
	p.intent.BootID, p.intent.CreatedAt = t.bootID, t.cfg.Now()
	p.blobs = blobs
	k, err := t.reserve(p.intent)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	pid, err := t.create(ctx, k, p)
	if err != nil {
		return nil, fmt.Errorf("create task %q: %w", id, err)
	}
	t.cfg.Log.Info("task created", "namespace", ns, "id", id, "shim", k.view().shimPID, "pid", pid)
	return &tasks.CreateTaskResponse{ContainerId: id, Pid: pid}, nil
}

// makeWay sees to it that a task that is as good as gone does not stand in the
// way of a new one: it waits for one that was deleted, whose last events are
// still to come before the first of the new one, and deletes one that stopped
// after its shim had died, which everybody who listens was told is deleted.
func (t *Tasks) makeWay(ctx context.Context, ns, id string) error {
	k := t.find(ns, id)
	if k == nil {
		return nil
	}
	switch k.view().stand {
	case leaving:
		select {
		case <-k.ctx.Done():
		case <-ctx.Done():
			return fmt.Errorf("waiting for the shim of the task %q that was deleted before: %w", id, ctx.Err())
		}
	case stopped:
		if err := k.lane.enter(ctx); err != nil { // its end may still be being published
			return err
		}
		k.lane.leave()
		k.mu.Lock()
		reported := k.seen.deleted
		k.mu.Unlock()
		if !reported {
			break
		}
		if _, err := t.Delete(ctx, ns, &tasks.DeleteTaskRequest{ContainerId: id}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil // reserve says whether it exists
}

// create does what a plan says, or undoes what it did.
func (t *Tasks) create(ctx context.Context, k *task, p *plan) (uint32, error) {
	if err := t.bundles.make(p.intent, p.config); err != nil {
		t.drop(k)
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w (a bundle that the daemon does not know)", err)
		}
		return 0, fmt.Errorf("make bundle: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	if err := t.unpack(ctx, k, p); err != nil {
		return 0, t.undo(k, nil, nil, false, err)
	}
	if err := t.activateRootfs(ctx, k, p); err != nil {
		return 0, t.undo(k, nil, nil, false, err)
	}
	leave, err := t.enterPod(ctx, k)
	if err != nil {
		return 0, t.undo(k, nil, nil, false, err)
	}
	defer leave()
	shim, c, err := t.startShim(ctx, k, p)
	if err != nil {
		return 0, t.undo(k, shim, c, false, err)
	}
	c, reply, err := t.createIn(ctx, k, c, p)
	if err != nil {
		hasAnswered := ctx.Err() == nil && !c.closed() && !errors.Is(err, context.DeadlineExceeded)
		return 0, t.undo(k, shim, c, hasAnswered, unnamed(k.id, err))
	}
	if p.intent.Foreign {
		err = t.recordInit(k, int(reply.GetPid()))
	}
	if err == nil {
		err = k.created(c)
	}
	if err != nil {
		return 0, t.undo(k, shim, c, false, err)
	}
	t.wg.Go(func() { t.supervise(k) })
	return reply.GetPid(), nil
}

// createIn has a shim make the container. It gives the connection that is in use
// from then on.
func (t *Tasks) createIn(ctx context.Context, k *task, c *conn, p *plan) (*conn, *shimtask.CreateTaskResponse, error) {
	if p.intent.Foreign {
		return t.createForeign(ctx, k, c, p.request)
	}
	reply, err := call(ctx, c, "create the container", t.cfg.Deadlines.Create, c.shim.Create, p.request)
	return c, reply, err
}

// startShim starts the shim of a new bundle and connects to it.
func (t *Tasks) startShim(ctx context.Context, k *task, p *plan) (*child, *conn, error) {
	if p.intent.Foreign {
		c, err := t.startForeign(ctx, k, p)
		return nil, c, err
	}
	if p.intent.Group != "" {
		c, err := t.joinShim(ctx, k)
		if c == nil && err == nil && p.host != nil {
			err = fmt.Errorf("%w: %w", errNoHost, errdefs.ErrUnavailable)
		}
		if c != nil || err != nil {
			return nil, c, err
		}
	}
	return t.startOwn(ctx, k, p.cgroup)
}

// startOwn starts a shim of ours on the socket of a task, and connects to it.
func (t *Tasks) startOwn(ctx context.Context, k *task, cgroup string) (*child, *conn, error) {
	socket, err := listen(k.socket)
	if err != nil {
		return nil, nil, err
	}
	defer socket.Close()
	shim, err := t.launch(k, socket)
	if err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	k.child = shim
	k.shim = record.Shim{
		Version: record.Version, PID: shim.proc.PID(), StartTime: shim.proc.StartTime(), Socket: k.socket,
		Shared: k.intent.Group != "",
	}
	made := k.shim
	k.mu.Unlock()
	if err := record.Write("runtime.shim", k.dir, record.ShimFile, made); err != nil {
		return shim, nil, err
	}
	t.place(k, made.PID, cgroup)
	dialCtx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Connect)
	defer cancel()
	c, err := t.dial(dialCtx, ownContact(k.socket), false)
	if err != nil {
		err = fmt.Errorf("connect to the shim: %w", err)
	}
	return shim, c, err
}

// created takes a task over from its shim: the outcome of the intent.
func (k *task) created(c *conn) error {
	if err := k.takeInit(); err != nil {
		return err
	}
	k.setStatus(apitask.Status_CREATED)
	k.set(connected, "", c)
	return nil
}

// takeInit takes a handle on the process that is on record. A task from a
// checkpoint has none before its start.
func (k *task) takeInit() error {
	started, err := readRecord[record.Started](k.dir, record.StartedFile)
	if err == nil && started == nil {
		err = fmt.Errorf("the shim has left no %s", record.StartedFile)
	}
	if err != nil {
		return err
	}
	return k.hold(k.init, *started)
}

// undo removes what a failed create has made, and gives the error for the
// caller. answered says that the shim itself said that it failed, so it has
// cleaned up. What can't be undone now stays in the table and is tried again.
func (t *Tasks) undo(k *task, shim *child, c *conn, answered bool, cause error) error {
	tail := logTail(k.dir)
	err := t.undoShim(t.ctx, k, shim, c, answered)
	if err == nil {
		err = t.clear(k)
	}
	if tail != "" {
		cause = &shimError{cause, tail}
	}
	if err == nil {
		t.drop(k)
		return cause
	}
	t.cfg.Log.Error("failed create not undone yet", "namespace", k.ns, "id", k.id, "error", err)
	k.set(adopting, fmt.Sprintf("a create failed and is not undone yet: %v", err), nil)
	t.wg.Go(func() { t.supervise(k) })
	return errors.Join(cause, fmt.Errorf("undo: %w", err))
}

// undoShim ends the shim of a failed create and all that came of it.
func (t *Tasks) undoShim(ctx context.Context, k *task, shim *child, c *conn, answered bool) error {
	if k.foreign() {
		return t.undoForeign(ctx, k, c, answered)
	}
	if shim == nil {
		return t.undoJoined(ctx, k, c, answered)
	}
	clean := answered && t.dismiss(ctx, k, c) == nil
	if c != nil {
		c.close()
	}
	grace, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Shutdown)
	defer cancel()
	if !clean {
		cancel() // it has nothing to wait for
	}
	if err := shim.gone(grace); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(k.dir, record.StartedFile))
	if clean && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err = t.remains(ctx, k)
	return err
}

// undoJoined is undoShim for a task that has no shim of its own, or has joined
// that of its pod, which stays.
func (t *Tasks) undoJoined(ctx context.Context, k *task, c *conn, answered bool) error {
	if c == nil {
		return nil // nobody was asked for anything
	}
	c.close()
	if answered {
		return nil
	}
	_, err := t.remains(ctx, k)
	return err
}

// undoForeign is undoShim for a foreign shim, which is asked to leave if it
// answers at all, and whose "delete" removes what is left.
func (t *Tasks) undoForeign(ctx context.Context, k *task, c *conn, answered bool) error {
	if c != nil {
		if answered {
			if err := t.dismiss(ctx, k, c); err != nil {
				t.cfg.Log.Warn("shim of a failed create does not leave", "namespace", k.ns, "id", k.id, "error", err)
			}
		}
		c.close()
	}
	_, err := t.remains(ctx, k)
	if t.shared(k) {
		return err
	}
	return errors.Join(err, t.endShim(ctx, k, c), t.endStrays(ctx, k))
}

// clear removes the bundle and the socket of a task of which no process is left,
// and of which there is nothing to tell.
func (t *Tasks) clear(k *task) error {
	err := t.shelve(k)
	t.unshelve(k)
	return err
}

// shelve frees the name of a task of which no process is left: its bundle and
// its socket. The files of the bundle stay until unshelve, so that the next
// daemon can publish the task's last events if this one ends before it has.
func (t *Tasks) shelve(k *task) error {
	if err := t.clearImages(k); err != nil {
		return err
	}
	gone, err := t.bundles.remove(k.ns, k.id)
	if err != nil {
		return err
	}
	t.releaseRootfs(k)
	if gone != "" {
		k.mu.Lock()
		k.shelved = gone
		k.mu.Unlock()
	}
	if t.shared(k) {
		return t.clearWork(k)
	}
	if err := os.Remove(k.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.clearWork(k)
}

// unshelve removes what shelve has left.
func (t *Tasks) unshelve(k *task) {
	k.mu.Lock()
	gone := k.shelved
	k.shelved = ""
	k.mu.Unlock()
	if gone != "" {
		t.wg.Go(func() { t.bury(name{k.ns, k.id}, gone) })
	}
}

// place moves a shim into the cgroup that was asked for. Where that is refused
// it is logged and no more: containers run all the same.
func (t *Tasks) place(k *task, pid int, cgroup string) {
	if cgroup == "" {
		return
	}
	if err := sys.JoinCgroup(pid, cgroup); err != nil {
		t.cfg.Log.Warn("shim not moved into its cgroup", "namespace", k.ns, "id", k.id, "cgroup", cgroup, "error", err)
	}
}

// shimError is an error of a shim together with the end of its log.
type shimError struct {
	err error
	log string
}

func (e *shimError) Error() string {
	return fmt.Sprintf("(shim log: %q) %v", e.log, e.err)
}

func (e *shimError) Unwrap() error { return e.err }
