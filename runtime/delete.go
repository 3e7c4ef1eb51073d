package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// deletion is a Delete under way. reply and err are set before done is closed.
type deletion struct {
	done  chan struct{}
	reply *tasks.DeleteResponse
	err   error
}

// Delete removes a task that is stopped, or created and not started. It can be
// called again after it failed; a second caller joins the first. It goes on to
// its end when its callers go away.
func (t *Tasks) Delete(ctx context.Context, ns string, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error) {
	k, err := t.lookup(ns, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := t.begin(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	f := k.flight
	if f == nil {
		f = &deletion{done: make(chan struct{})}
		k.flight = f
		t.wg.Go(func() { t.runDeletion(t.ctx, k, f) })
	}
	k.mu.Unlock()
	t.wg.Done()
	select {
	case <-f.done:
		return f.reply, f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("delete task %q: it goes on without the caller: %w", k.id, ctx.Err())
	}
}

func (t *Tasks) runDeletion(ctx context.Context, k *task, f *deletion) {
	exit, err := t.delete(ctx, k)
	if err == nil {
		f.reply = &tasks.DeleteResponse{
			Id: k.id, Pid: uint32(exit.PID), ExitStatus: exit.Status, ExitedAt: timestamp(exit.ExitedAt),
		}
		t.cfg.Log.Info("task deleted", "namespace", k.ns, "id", k.id, "status", exit.Status)
	} else {
		f.err = fmt.Errorf("delete task %q: %w", k.id, unnamed(k.id, err))
	}
	k.mu.Lock()
	k.flight = nil
	k.mu.Unlock()
	close(f.done)
}

// timestamp gives a time as the wire has it; the zero time is none.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// delete does a Delete: shim, then bundle, then table. Each step may have been
// done by an earlier one.
func (t *Tasks) delete(ctx context.Context, k *task) (record.Exit, error) {
	limit := t.cfg.Deadlines.Connect + t.cfg.Deadlines.Retry
	if _, err := k.settled(ctx, limit); err != nil {
		return record.Exit{}, err
	}
	if err := k.lane.enter(k.ctx); err != nil {
		return record.Exit{}, notFound(k.id)
	}
	defer k.lane.leave()
	if k.ctx.Err() != nil {
		return record.Exit{}, notFound(k.id)
	}
	v := k.view()
	switch v.stand {
	case connected:
		return t.deleteWithShim(ctx, k, v)
	case stopped:
		return t.deleteRemains(ctx, k, v)
	case lost:
		if v.exit == nil {
			return record.Exit{}, fmt.Errorf("cannot delete a running process: %s, and the container runs on; kill it first", v.reason)
		}
		return t.deleteRemains(ctx, k, v)
	case quarantined:
		return t.deleteQuarantined(ctx, k, v)
	}
	k.try()
	return record.Exit{}, fmt.Errorf("%s: %w", v.reason, errdefs.ErrUnavailable)
}

// deleteWithShim has the shim delete the container and leave. It does not wait
// for the leaving, unless something is amiss.
func (t *Tasks) deleteWithShim(ctx context.Context, k *task, v view) (record.Exit, error) {
	c := v.conn
	exit, err := t.shimDelete(ctx, k, c)
	if err != nil {
		return record.Exit{}, err
	}
	leave, err := t.enterPod(ctx, k)
	if err != nil {
		return record.Exit{}, err
	}
	defer leave()
	// The shim has to know that it is to leave before the bundle goes: nobody
	// could tell it after a crash of the daemon.
	told, shared := error(nil), t.shared(k)
	if !t.sandboxed(k) {
		told = t.shutdown(ctx, c)
		shared = t.shared(k)
	}
	if told == nil {
		if err = t.shelve(k); err == nil {
			k.exited(exit)
			k.release()
			k.set(leaving, "deleted", c)
			t.wg.Go(func() { t.farewell(k, c, exit, shared) })
			if k.view().intent.Group != "" && !shared {
				// A task of the pod that is created next must not find the shim on
				// its way out. If it does not leave in time, farewell sees to that.
				_ = t.parted(ctx, c)
			}
			return exit, nil
		}
		told = t.parted(ctx, c)
	}
	if shared {
		return record.Exit{}, errors.Join(err, told) // it has others
	}
	// The shim has no container any more, so it may be ended.
	if err := errors.Join(err, t.endShim(ctx, k, c)); err != nil {
		return record.Exit{}, errors.Join(err, told)
	}
	if told != nil {
		t.cfg.Log.Warn("shim without a container ended", "namespace", k.ns, "id", k.id, "error", told)
	}
	c.close()
	k.exited(exit)
	k.set(stopped, "its container is deleted", nil)
	return exit, t.finish(k, exit)
}

// farewell waits until the shim of a deleted task has left, and sees to it that
// the task's last events are out.
func (t *Tasks) farewell(k *task, c *conn, exit record.Exit, shared bool) {
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id)
	if shared {
		t.awaitDelete(k)
		t.lastEvents(k, exit)
		t.unshelve(k)
		t.drop(k)
		return
	}
	if err := t.parted(k.ctx, c); err != nil {
		if k.ctx.Err() != nil {
			return // the daemon stops; the shim leaves all the same
		}
		log.Warn("shim without a container ended", "error", err)
	}
	if err := t.endShim(k.ctx, k, c); err != nil {
		log.Error("shim without a container lives on", "error", err)
	}
	t.lastEvents(k, exit)
	t.unshelve(k)
	t.drop(k)
}

// deleteLook is how often it is looked whether a delete event has come.
const deleteLook = 10 * time.Millisecond

// awaitDelete waits for the delete event of a task whose shim stays with others.
func (t *Tasks) awaitDelete(k *task) {
	ctx, cancel := context.WithTimeout(k.ctx, t.cfg.Deadlines.Shutdown)
	defer cancel()
	ticker := time.NewTicker(deleteLook)
	defer ticker.Stop()
	for {
		k.mu.Lock()
		deleted := k.seen.deleted
		k.mu.Unlock()
		if deleted {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// shimDelete has the shim delete the container, and gives init's exit.
func (t *Tasks) shimDelete(ctx context.Context, k *task, c *conn) (record.Exit, error) {
	k.mu.Lock()
	done := k.deleted
	k.mu.Unlock()
	if done != nil {
		return *done, nil // an earlier Delete came to here
	}
	reply, err := call(ctx, c, "delete the container", t.cfg.Deadlines.Delete, c.shim.Delete, &shimtask.DeleteRequest{Id: k.id})
	exit := record.Exit{
		Version: record.Version, PID: int(reply.GetPid()), Status: reply.GetExitStatus(), ExitedAt: reply.GetExitedAt().AsTime(),
	}
	if reply.GetExitedAt() == nil {
		exit.ExitedAt = time.Time{}
	}
	if errdefs.IsNotFound(err) {
		// It was deleted, but its answer was lost.
		known, rerr := readRecord[record.Exit](k.dir, record.ExitFile)
		if rerr != nil || known == nil {
			return record.Exit{}, errors.Join(err, rerr)
		}
		exit, err = *known, nil
	}
	if err != nil {
		return record.Exit{}, err
	}
	k.mu.Lock()
	k.deleted = &exit
	k.mu.Unlock()
	return exit, nil
}

// endShim returns once the process of a shim that has no container is gone. One
// that has not closed its connection yet is killed.
func (t *Tasks) endShim(ctx context.Context, k *task, c *conn) error {
	k.mu.Lock()
	shim, own := k.shim, k.child
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Shutdown)
	defer cancel()
	if own != nil {
		if c == nil || !c.closed() {
			own.kill()
		}
		return own.gone(ctx)
	}
	if shim.PID == 0 { // a foreign one that does not say; it was told to leave
		return t.endSilent(ctx, k, c)
	}
	handle, err := sys.OpenProcess(shim.PID)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer handle.Close()
	if handle.StartTime() != shim.StartTime {
		return nil // the shim has ended, another process has its pid
	}
	if (c == nil || c.closed()) && handle.Exited(ctx) == nil {
		return nil
	}
	if err := handle.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	ctx, cancel = context.WithTimeout(t.ctx, killGrace)
	defer cancel()
	if err := handle.Exited(ctx); err != nil {
		return fmt.Errorf("shim %d does not end although it was killed: %w", shim.PID, err)
	}
	return nil
}

// deleteRemains deletes a stopped task that has no shim.
func (t *Tasks) deleteRemains(ctx context.Context, k *task, v view) (record.Exit, error) {
	if v.exit == nil {
		return record.Exit{}, fmt.Errorf("exit status not known: %w", errdefs.ErrInternal)
	}
	if _, err := os.Lstat(k.dir); err == nil {
		if _, err := t.remains(ctx, k); err != nil {
			return record.Exit{}, err
		}
	}
	return *v.exit, t.finish(k, *v.exit)
}

// finish removes what is left of a task of which no process is.
func (t *Tasks) finish(k *task, exit record.Exit) error {
	if err := t.shelve(k); err != nil {
		return err
	}
	t.lastEvents(k, exit)
	t.unshelve(k)
	t.drop(k)
	return nil
}

// lastEvents publishes what the shim of a deleted task has not.
func (t *Tasks) lastEvents(k *task, exit record.Exit) {
	k.mu.Lock()
	ran := k.ran
	if exit.PID == 0 {
		exit.PID = k.init.started.PID
	}
	k.mu.Unlock()
	var exits []ended
	if ran { // else it has no exit to speak of
		exits = []ended{{"", exit}}
	}
	t.announce(k, exits, &exit)
}

// DeleteProcess removes an exec that is not running.
func (t *Tasks) DeleteProcess(ctx context.Context, ns string, r *tasks.DeleteProcessRequest) (*tasks.DeleteResponse, error) {
	if err := names.Identifier(r.GetExecId()); err != nil {
		return nil, fmt.Errorf("exec id: %w", err)
	}
	var reply *shimtask.DeleteResponse
	k, err := t.with(ctx, ns, r.GetContainerId(), "delete exec", func(k *task, c *conn) (err error) {
		reply, err = call(ctx, c, "delete the exec", t.cfg.Deadlines.Delete, c.shim.Delete,
			&shimtask.DeleteRequest{Id: k.id, ExecId: r.GetExecId()})
		return err
	})
	var gone *goneError
	if errors.As(err, &gone) {
		return t.deleteOrphan(gone.task, r.GetExecId())
	}
	if err != nil {
		return nil, err
	}
	t.forgetExec(k, r.GetExecId())
	return &tasks.DeleteResponse{
		Id: r.GetExecId(), Pid: reply.GetPid(), ExitStatus: reply.GetExitStatus(), ExitedAt: reply.GetExitedAt(),
	}, nil
}

// forgetExec drops what is known of an exec that was deleted.
func (t *Tasks) forgetExec(k *task, exec string) {
	t.removeExec(k, exec)
	k.forget(exec, fmt.Errorf("exec %q of task %q: %w", exec, k.id, errdefs.ErrNotFound))
	if err := os.Remove(filepath.Join(k.dir, record.SeenDir, exec)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.cfg.Log.Warn("mark of a deleted exec not removed", "namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	}
}

// deleteOrphan deletes an exec whose shim has died.
func (t *Tasks) deleteOrphan(k *task, exec string) (*tasks.DeleteResponse, error) {
	dir := execDir(k.dir, exec)
	k.mu.Lock()
	p := k.execs[exec]
	over := p != nil && p.over()
	k.mu.Unlock()
	switch {
	case p == nil:
		return nil, fmt.Errorf("delete exec %q of task %q: %w", exec, k.id, errdefs.ErrNotFound)
	case !over:
		return nil, fmt.Errorf("delete exec %q of task %q: cannot delete a running process", exec, k.id)
	}
	if err := removeTree(dir); err != nil {
		return nil, err
	}
	t.forgetExec(k, exec)
	return &tasks.DeleteResponse{
		Id: exec, Pid: uint32(p.exit.PID), ExitStatus: p.exit.Status, ExitedAt: timestamp(p.exit.ExitedAt),
	}, nil
}
