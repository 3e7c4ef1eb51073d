package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/runtime/record"
)

// supervise looks after a task until it leaves the table: it stays with the shim
// as long as there is one, then finds out what became of it, and so on.
func (t *Tasks) supervise(k *task) {
	pause := t.cfg.Deadlines.Retry
	for k.ctx.Err() == nil {
		switch v := k.view(); v.stand {
		case connected:
			t.attend(k, v.conn)
			pause = t.cfg.Deadlines.Retry
		case lost:
			t.guard(k)
		case stopped, quarantined, leaving:
			return // nothing can happen to it by itself
		case adopting:
			if v.judged {
				k.pause(pause)
				pause = min(2*pause, maxRetry)
			}
		}
		t.review(k)
	}
}

// pause waits before another try, or until one is asked for.
func (k *task) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.kick:
	case <-k.ctx.Done():
	}
}

// adoptionTurn is how long the judging of one task may count among those that
// are done at once.
const adoptionTurn = 300 * time.Millisecond

// review finds out how a task stands now, and acts on it.
func (t *Tasks) review(k *task) {
	if k.lane.enter(k.ctx) != nil {
		return
	}
	defer k.lane.leave()
	v := k.view()
	if k.ctx.Err() != nil || v.stand == stopped || v.stand == quarantined || v.stand == leaving {
		return // a Delete was faster
	}
	if _, err := os.Lstat(k.dir); errors.Is(err, os.ErrNotExist) {
		t.drop(k) // an undo got as far as that before
		return
	}
	select {
	case t.adoptions <- struct{}{}:
	case <-k.ctx.Done():
		return
	}
	// One that does not answer must not keep others from being judged.
	release := sync.OnceFunc(func() { <-t.adoptions })
	late := time.AfterFunc(adoptionTurn, release)
	f, c := t.gather(k.ctx, k)
	late.Stop()
	release()
	if k.ctx.Err() != nil {
		if c != nil {
			c.close()
		}
		return
	}
	v2, reason := judge(f)
	t.act(k, v2, reason, c, v.stand)
}

// act does what a verdict asks for. The connection is nil unless the shim
// answered. Needs the lane.
func (t *Tasks) act(k *task, v verdict, reason string, c *conn, before standing) {
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id)
	switch v {
	case verdictConnected:
		if err := k.hold(k.init, k.view().init); err != nil {
			log.Warn("no handle on the container's process: its status is lost if the shim and it end at once", "error", err)
		}
		t.holdExecs(k)
		t.noteRan(k)
		if k.foreign() {
			t.followLog(k)
		}
		k.set(connected, "", c)
		log.Info("task adopted")
		return // c is the task's now
	case verdictUnknown:
		if before != adopting || !k.view().judged {
			log.Warn("task kept, its shim is tried again", "reason", reason)
		}
		k.set(adopting, reason, nil)
	case verdictQuarantine:
		log.Error("task quarantined: its bundle is kept and needs a look", "bundle", k.dir, "reason", reason)
		k.set(quarantined, reason, nil)
	case verdictLost:
		t.lookFrozen(k)
		t.orphaned(k, reason)
		if before != lost {
			log.Error("shim lost, the container runs on without it", "reason", reason, "shim_log", logTail(k.dir))
		}
	case verdictStopped:
		if err := t.dismiss(k.ctx, k, c); err != nil {
			k.set(adopting, err.Error(), nil)
			break
		}
		exit := t.conclude(k, reason)
		log.Warn("task stopped without its shim", "reason", reason, "status", exit.Status, "status_from", exit.Reason)
	case verdictUndo:
		if err := t.undoIntent(k, c); err != nil {
			log.Warn("unfinished create not undone yet", "error", err)
			k.set(adopting, err.Error(), nil)
			break
		}
		log.Info("unfinished create undone", "reason", reason)
		t.drop(k)
	case verdictDiscard:
		if err := t.discard(k); err != nil {
			log.Warn("bundle of an earlier boot not removed yet", "error", err)
			k.set(adopting, err.Error(), nil)
			break
		}
		t.drop(k)
	}
	if c != nil {
		c.close()
	}
}

// undoIntent removes what a create has left that never came to an outcome.
func (t *Tasks) undoIntent(k *task, c *conn) error {
	if err := t.dismiss(k.ctx, k, c); err != nil {
		return err
	}
	if _, err := t.remains(k.ctx, k); err != nil {
		return err
	}
	if k.foreign() && !t.shared(k) {
		if err := t.endStrays(k.ctx, k); err != nil {
			return err
		}
	}
	return t.clear(k)
}

// dismiss has a shim without containers leave, and waits until it has. No
// connection is no shim. A shim that another task is with is told as well, and
// stays, if it has others.
func (t *Tasks) dismiss(ctx context.Context, k *task, c *conn) error {
	if c == nil {
		return nil
	}
	if k != nil && t.sandboxed(k) {
		c.close()
		return nil
	}
	if err := t.shutdown(ctx, c); err != nil {
		return err
	}
	if k != nil && t.shared(k) {
		c.close()
		return nil
	}
	return t.parted(ctx, c)
}

// shutdown tells a shim without containers to leave.
func (t *Tasks) shutdown(ctx context.Context, c *conn) error {
	_, err := call(ctx, c, "shut down", t.cfg.Deadlines.Shutdown, c.shim.Shutdown, &shimtask.ShutdownRequest{})
	if errors.Is(err, errShimGone) {
		return nil
	}
	return err
}

// parted waits until a shim that was told to leave has closed its connection,
// which it does once its events are delivered.
func (t *Tasks) parted(ctx context.Context, c *conn) error {
	timer := time.NewTimer(t.cfg.Deadlines.Shutdown)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("the shim did not leave within %s: %w", t.cfg.Deadlines.Shutdown, context.DeadlineExceeded)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attend stays with a connection until it ends: it asks the shim for the exits
// that somebody waits for, and sees to it that exits of before are published.
func (t *Tasks) attend(k *task, c *conn) {
	k.mu.Lock()
	waited := []*process{k.init}
	for _, p := range k.execs {
		waited = append(waited, p)
	}
	k.mu.Unlock()
	for _, p := range waited {
		t.ask(k, p, c)
	}
	var due <-chan time.Time
	missed := t.unannounced(k)
	if len(missed) > 0 {
		timer := time.NewTimer(t.cfg.Deadlines.Events)
		defer timer.Stop()
		due = timer.C
	}
	for {
		select {
		case <-c.done:
			return
		case <-k.ctx.Done():
			return
		case <-due:
			t.announce(k, missed, nil)
		}
	}
}

// ask asks the shim for the exit of a process, once per connection.
func (t *Tasks) ask(k *task, p *process, c *conn) {
	k.mu.Lock()
	asked := p.over() || p.asked == c
	p.asked = c
	k.mu.Unlock()
	if asked {
		return
	}
	t.wg.Go(func() {
		reply, err := call(k.ctx, c, "wait", 0, c.shim.Wait, &shimtask.WaitRequest{Id: k.id, ExecId: p.exec})
		if err != nil && (k.ctx.Err() != nil || errors.Is(err, errShimGone)) {
			return // supervise finds out
		}
		k.mu.Lock()
		pid := p.started.PID
		k.mu.Unlock()
		exit := record.Exit{Version: record.Version, PID: pid, Status: reply.GetExitStatus(), ExitedAt: reply.GetExitedAt().AsTime()}
		switch {
		case err == nil && p.exec == "":
			k.exited(t.keep(k, exit))
		case err == nil:
			if k.foreign() {
				t.recordExit(k, p.exec, exit)
			}
			k.mu.Lock()
			p.resolve(exit, nil)
			k.mu.Unlock()
		case p.exec != "":
			k.forgetProcess(p, err)
		}
	})
}

// keep gives the record of an exit that a shim has told of, which says more than
// the answer to a Wait. It writes one unless that is there as it should be: the
// shim's disk was full, say, and its memory is all there is.
func (t *Tasks) keep(k *task, exit record.Exit) record.Exit {
	known, err := readRecord[record.Exit](k.dir, record.ExitFile)
	switch {
	case err == nil && known != nil && known.PID == exit.PID && known.Status == exit.Status:
		return *known
	case err != nil || known != nil:
		return exit
	}
	err = record.Write("runtime.exit", k.dir, record.ExitFile, exit)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
		t.cfg.Log.Warn("exit not recorded, nor by the shim", "namespace", k.ns, "id", k.id, "status", exit.Status, "error", err)
	}
	return exit
}

// unannounced lists the exits in the records whose events were not published.
// The shim may be about to send them.
func (t *Tasks) unannounced(k *task) []ended {
	var missed []ended
	add := func(exec, dir string) {
		exit, err := readRecord[record.Exit](dir, record.ExitFile)
		if err != nil || exit == nil {
			return
		}
		k.mu.Lock()
		pid, ok := k.seen.exits[exec]
		k.mu.Unlock()
		if !ok || pid != exit.PID {
			missed = append(missed, ended{exec, *exit})
		}
	}
	add("", k.dir)
	for _, exec := range execRecords(k.dir) {
		add(exec, execDir(k.dir, exec))
	}
	return missed
}
