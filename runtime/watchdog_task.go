package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/runtime/record"
)

// task compares what is known of a task with its processes and its records.
func (l *inspection) task(ctx context.Context, k *task) {
	v := k.view()
	switch v.stand {
	case connected:
		l.shim(k, v)
		l.missedExit(k, v)
		l.deadExecs(k, false)
	case lost:
		l.report(Finding{Kind: "task", Namespace: k.ns, Object: k.id, Text: fmt.Sprintf(
			"runs on without its shim (%s): it can be killed and deleted, and its exit is told, but its output is lost; "+
				"`berth stop` and `berth start` give it a shim again", v.reason)})
		l.unnoticedEnd(ctx, k, v)
		l.deadExecs(k, true)
	case stopped:
		l.record(k, v)
		l.deadExecs(k, true)
	case quarantined:
		l.report(Finding{Kind: "task", Namespace: k.ns, Object: k.id,
			Text: "quarantined: " + v.reason + "; look at " + k.dir + ", then delete the task"})
	case adopting:
		if v.judged {
			l.report(Finding{Kind: "task", Namespace: k.ns, Object: k.id,
				Text: "not known how it stands: " + v.reason + "; it is tried again" + hungAdvice(v.shimPID)})
		}
	}
}

// shimName names a shim, which may not have told its pid.
func shimName(pid int) string {
	if pid == 0 {
		return "its shim, which has told no pid,"
	}
	return fmt.Sprintf("shim %d", pid)
}

func hungAdvice(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf("; if its shim hangs, `kill -9 %d` ends that, and the container runs on", pid)
}

// shim looks whether the shim of a connected task answers, and lives.
func (l *inspection) shim(k *task, v view) {
	t := l.tasks
	if silent := v.conn.silentFor(); silent > 0 {
		l.report(Finding{Kind: "shim", Namespace: k.ns, Object: k.id, Since: l.now.Add(-silent), Text: fmt.Sprintf(
			"%s has not answered for %s%s", shimName(v.shimPID), silent.Round(time.Second), hungAdvice(v.shimPID))})
		t.poke(k, v.conn)
	} else if k.foreign() {
		// Of ours it is known what can make them hang, and every call about them
		// shows it; of another's nothing is.
		t.poke(k, v.conn)
	}
	k.mu.Lock()
	shim := k.shim
	k.mu.Unlock()
	if shim.PID == 0 || lifeOf(shim.PID, shim.StartTime) != dead || v.conn.closed() {
		return
	}
	if since, ok := l.ripe("shim dead", k.ns, k.id); ok {
		v.conn.close()
		l.report(Finding{Kind: "shim", Namespace: k.ns, Object: k.id, Since: since,
			Text:     fmt.Sprintf("shim %d is dead, but its connection was open", shim.PID),
			Repaired: "closed the connection; the task is judged anew"})
	}
}

// missedExit looks for an init that has ended and of whose exit the shim has not
// told.
func (l *inspection) missedExit(k *task, v view) {
	if v.exit != nil || v.init.PID == 0 || lifeOf(v.init.PID, v.init.StartTime) != dead {
		return
	}
	since, ok := l.ripe("exit", k.ns, k.id)
	if !ok {
		return
	}
	f := Finding{Kind: "exit", Namespace: k.ns, Object: k.id, Since: since}
	exit, err := readRecord[record.Exit](k.dir, record.ExitFile)
	switch {
	case err != nil:
		f.Text = fmt.Sprintf("init %d has ended: %v", v.init.PID, err)
	case exit != nil:
		k.exited(*exit)
		f.Text = fmt.Sprintf("init %d had ended with %d, which its shim had recorded and not told", exit.PID, exit.Status)
		f.Repaired = "took the exit from its record" // its event is in the shim's queue, behind others
	default:
		f.Text = fmt.Sprintf("init %d has ended, and its shim has not recorded how%s", v.init.PID, hungAdvice(v.shimPID))
	}
	l.report(f)
}

// unnoticedEnd looks for an init without a shim that has ended unnoticed.
func (l *inspection) unnoticedEnd(ctx context.Context, k *task, v view) {
	if v.exit != nil || v.init.PID == 0 || lifeOf(v.init.PID, v.init.StartTime) != dead {
		return
	}
	since, ok := l.ripe("end", k.ns, k.id)
	if !ok || ctx.Err() != nil {
		return
	}
	l.tasks.review(k)
	f := Finding{Kind: "exit", Namespace: k.ns, Object: k.id, Since: since, Text: fmt.Sprintf("init %d had ended unnoticed", v.init.PID)}
	if k.view().exit != nil {
		f.Repaired = "noted its exit"
	}
	l.report(f)
}

// record compares the exit record of a task without a shim with what is told of
// it.
func (l *inspection) record(k *task, v view) {
	if v.exit == nil {
		return
	}
	exit, err := readRecord[record.Exit](k.dir, record.ExitFile)
	if err == nil && exit != nil && exit.Status == v.exit.Status {
		return
	}
	since, ok := l.ripe("record", k.ns, k.id)
	if !ok || k.view().stand != stopped {
		return
	}
	f := Finding{Kind: "record", Namespace: k.ns, Object: k.id, Since: since}
	switch {
	case err != nil:
		f.Text = err.Error()
	case exit != nil:
		f.Text = fmt.Sprintf("its exit record says %d, and it was told as %d", exit.Status, v.exit.Status)
	default:
		f.Text = fmt.Sprintf("no record of its exit with %d", v.exit.Status)
		if err := record.Write("runtime.exit", k.dir, record.ExitFile, *v.exit); err != nil {
			f.Text += ": " + err.Error()
		} else {
			f.Repaired = "wrote it"
		}
	}
	l.report(f)
}

// deadExecs looks for execs that are on record as running and have ended.
func (l *inspection) deadExecs(k *task, orphaned bool) {
	for _, exec := range execRecords(k.dir) {
		dir := execDir(k.dir, exec)
		started, err := readRecord[record.Started](dir, record.StartedFile)
		if err != nil || started == nil || lifeOf(started.PID, started.StartTime) != dead {
			continue
		}
		if exit, err := readRecord[record.Exit](dir, record.ExitFile); err != nil || exit != nil {
			continue
		}
		since, ok := l.ripe("exec", k.ns, k.id+"/"+exec)
		if !ok {
			continue
		}
		f := Finding{Kind: "exec", Namespace: k.ns, Object: k.id + "/" + exec, Since: since,
			Text: fmt.Sprintf("exec process %d has ended, and there is no record of how", started.PID)}
		if orphaned && l.settle(k, exec) {
			f.Repaired = "recorded what the kernel tells"
		}
		l.report(f)
	}
}

// settle has the execs of a task without a shim looked after.
func (l *inspection) settle(k *task, exec string) bool {
	if k.lane.enter(k.ctx) != nil {
		return false
	}
	defer k.lane.leave()
	if s := k.view().stand; s != lost && s != stopped {
		return false
	}
	l.tasks.announce(k, l.tasks.orphans(k), nil)
	exit, err := readRecord[record.Exit](execDir(k.dir, exec), record.ExitFile)
	return err == nil && exit != nil
}
