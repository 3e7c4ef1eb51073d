package runtime

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// What the records say of exits that no shim has seen. The source of a status
// stands behind reasonDied.
const (
	reasonDied       = "the shim had died; status from "
	reasonUnobserved = "exit unobserved: the shim had died, and "
)

// statusUnobserved is the exit status of a process whose own nobody knows.
const statusUnobserved = 255

func execDir(dir, exec string) string { return filepath.Join(dir, record.ExecsDir, exec) }

// orphaned takes over from a dead shim while the container lives.
func (t *Tasks) orphaned(k *task, reason string) {
	if err := k.hold(k.init, k.view().init); err != nil {
		t.cfg.Log.Warn("no handle on the container's process", "namespace", k.ns, "id", k.id, "error", err)
	}
	t.announce(k, t.standWithoutShim(k, lost, reason), nil)
}

// standWithoutShim changes the standing of a task whose shim is dead, and looks
// after its execs: before, since from then on one that nobody looks after counts
// as unknown, and after, for those that somebody began to wait for meanwhile.
func (t *Tasks) standWithoutShim(k *task, s standing, reason string) []ended {
	ends := t.orphans(k)
	k.set(s, reason, nil)
	return append(ends, t.orphans(k)...)
}

// guard waits for init's end in place of its shim.
func (t *Tasks) guard(k *task) {
	k.mu.Lock()
	handle := k.init.handle
	k.mu.Unlock()
	if handle == nil {
		k.pause(t.cfg.Deadlines.Retry)
		return
	}
	// An error other than the context's means that it can't be waited for; the
	// review that follows looks at the process itself.
	if err := handle.Exited(k.ctx); err != nil && k.ctx.Err() == nil {
		k.pause(t.cfg.Deadlines.Retry)
	}
}

// conclude settles a task whose shim is gone and whose init has ended: every
// exit is known and published, and the task waits to be deleted. Needs the lane.
func (t *Tasks) conclude(k *task, reason string) record.Exit {
	v := k.view()
	if v.exit == nil {
		exit := t.lastWord(k, k.init, k.dir)
		v.exit = &exit
		k.exited(exit)
	}
	// First the standing, then the news: who hears of the end may act on it.
	ends := t.standWithoutShim(k, stopped, reason)
	t.announce(k, append(ends, ended{"", *v.exit}), v.exit)
	return *v.exit
}

// lastWord finds out how a process ended that no shim saw ending, and records
// it. The process has ended and the shim is dead. Its exit record counts most,
// then what can be waited for, then what else the kernel tells.
func (t *Tasks) lastWord(k *task, p *process, dir string) record.Exit {
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id, "exec", p.exec)
	if exit, err := readRecord[record.Exit](dir, record.ExitFile); err != nil {
		log.Warn("exit record not readable, the kernel is asked", "error", err)
	} else if exit != nil {
		return *exit // the shim's last deed
	}
	k.mu.Lock()
	started := p.started
	k.mu.Unlock()
	if p.exec == "" && started.StartTime == 0 && k.foreign() {
		return t.foreignLastWord(k, started)
	}
	exit := record.Exit{Version: record.Version, PID: started.PID, Status: statusUnobserved, ExitedAt: t.cfg.Now()}
	exit.Reason = reasonUnobserved + "there is no record of its process"
	if started.PID != 0 {
		exit.Reason = reasonUnobserved + "so had the process before this daemon held a pidfd of it"
		if err := k.hold(p, started); err != nil {
			log.Warn("no handle on an ended process", "error", err)
			exit.Reason = reasonUnobserved + err.Error()
		}
	}
	k.mu.Lock()
	handle := p.handle
	k.mu.Unlock()
	if handle != nil {
		exit.Reason = reasonUnobserved + "the kernel keeps no status of a process that another one has reaped (Linux 6.15 does)"
		if status, source := handle.LastStatus(); source != sys.SourceNone {
			exit.Status, exit.Reason = exitCode(status), reasonDied+source.String()
		}
	}
	if err := record.Write("runtime.exit", dir, record.ExitFile, exit); err != nil {
		log.Error("exit not recorded: it is lost when the daemon ends", "status", exit.Status, "error", err)
	}
	return exit
}

// exitCode gives a status as shells and OCI runtimes do.
func exitCode(s unix.WaitStatus) uint32 {
	if s.Signaled() {
		return 128 + uint32(s.Signal())
	}
	return uint32(s.ExitStatus())
}

// orphans looks after the execs of a dead shim: those that have ended are
// resolved and returned, the others watched.
func (t *Tasks) orphans(k *task) []ended {
	recorded := execRecords(k.dir)
	for _, exec := range recorded {
		k.process(exec)
	}
	k.mu.Lock()
	all := make([]*process, 0, len(k.execs))
	for _, p := range k.execs {
		all = append(all, p)
	}
	k.mu.Unlock()
	var ends []ended
	for _, p := range all {
		if e, ok := t.orphan(k, p); ok {
			ends = append(ends, e)
		}
	}
	return ends
}

// orphan looks after one exec. ok means that its exit is known.
func (t *Tasks) orphan(k *task, p *process) (e ended, ok bool) {
	dir := execDir(k.dir, p.exec)
	k.mu.Lock()
	over, watched := p.over(), p.watched
	e = ended{p.exec, p.exit}
	failed := p.err != nil
	k.mu.Unlock()
	if over && e.exit.PID != 0 {
		return e, true
	}
	if watched || failed {
		return ended{}, false
	}
	exit, err := readRecord[record.Exit](dir, record.ExitFile)
	var started *record.Started
	if err == nil {
		started, err = readRecord[record.Started](dir, record.StartedFile)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("exec %q of task %q, whose shim has died: %w", p.exec, k.id, err)
	case exit != nil:
	case started == nil:
		err = fmt.Errorf("exec %q of task %q was not started before the shim died: %w", p.exec, k.id, errdefs.ErrUnavailable)
	case sys.Alive(started.PID, started.StartTime):
		if err = k.hold(p, *started); err == nil {
			t.watch(k, p)
			return ended{}, false
		}
	default:
		k.mu.Lock()
		p.started = *started
		k.mu.Unlock()
		word := t.lastWord(k, p, dir)
		exit = &word
	}
	if err != nil {
		k.mu.Lock()
		p.resolve(record.Exit{}, err)
		k.mu.Unlock()
		return ended{}, false
	}
	k.mu.Lock()
	p.resolve(*exit, nil)
	k.mu.Unlock()
	return ended{p.exec, *exit}, true
}

// watch waits for the end of an exec in place of its shim.
func (t *Tasks) watch(k *task, p *process) {
	k.mu.Lock()
	p.watched = true
	handle := p.handle
	k.mu.Unlock()
	t.wg.Go(func() {
		if handle != nil { // else it ended meanwhile
			if handle.Exited(k.ctx) != nil {
				return
			}
		}
		exit := t.lastWord(k, p, execDir(k.dir, p.exec))
		k.mu.Lock()
		p.resolve(exit, nil)
		k.mu.Unlock()
		t.announce(k, []ended{{p.exec, exit}}, nil)
	})
}
