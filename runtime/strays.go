package runtime

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// strayTime is how often orphans are looked for, and so the least time for which
// a child has to be a zombie before it counts as one.
const strayTime = 5 * time.Second

// reapStrays reaps, until the daemon ends, the orphans that the kernel gives to
// it as a subreaper, or as the pid 1 of a container: what ran below a shim that
// has died. Processes on record are waited for by those who look after their
// task, and those that the daemon has started by whoever did, which takes no
// more than a moment. So a child counts as an orphan once it has been a zombie
// for a whole round.
func (t *Tasks) reapStrays() {
	ticker := time.NewTicker(strayTime)
	defer ticker.Stop()
	var before map[int]uint64
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-ticker.C:
			before = t.reapRound(before)
		}
	}
}

// reapRound reaps the zombies of the round before, and gives those of this one:
// start time by pid.
func (t *Tasks) reapRound(before map[int]uint64) map[int]uint64 {
	children, err := sys.Children(os.Getpid())
	if err != nil {
		t.cfg.Log.Error("orphans not looked for", "error", err)
		return nil
	}
	var now map[int]uint64
	for _, pid := range children {
		stat, err := sys.ReadStat(pid)
		if err != nil || !stat.Dead() || t.looksAfter(pid) {
			continue
		}
		if before[pid] == stat.StartTime {
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err == nil && got == pid {
				t.cfg.Log.Debug("orphan reaped", "pid", pid, "command", stat.Comm)
			}
			continue
		}
		if now == nil {
			now = map[int]uint64{}
		}
		now[pid] = stat.StartTime
	}
	return now
}

// looksAfter tells whether a process is one of a task whose end is still to be
// noted.
func (t *Tasks) looksAfter(pid int) bool {
	t.mu.Lock()
	all := make([]*task, 0, len(t.tasks))
	for _, k := range t.tasks {
		all = append(all, k)
	}
	t.mu.Unlock()
	for _, k := range all {
		if k.awaits(pid) {
			return true
		}
	}
	return false
}

func (k *task) awaits(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.init.started.PID == pid && !k.init.over() {
		return true
	}
	for _, p := range k.execs {
		if p.started.PID == pid && !p.over() {
			return true
		}
	}
	return k.child != nil && k.child.proc.PID() == pid
}
