package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/runtime/record"
)

// points are durable steps of a task's life, in the daemon and in the shim.
var points = []string{
	"runtime.intent.write", "runtime.intent.rename", "runtime.bundle.rename", "runtime.shim.write", "runtime.shim.rename",
	"runtime.status.rename", "runtime.exit.write", "runtime.exit.rename", "runtime.remove.rename",
	"shim.runtime.rename", "shim.started.write", "shim.started.rename", "shim.exit.write", "shim.exit.rename",
	"shim.cleanup.rename",
}

// A shim that can't record an exit, and is killed together with the daemon, takes
// it along: its point only crashes.
func armament(r *rand.Rand) string {
	point, fate := points[r.IntN(len(points))], fates[r.IntN(len(fates))]
	if strings.HasPrefix(point, "shim.exit") {
		fate = strings.Replace(fate, "fail", "crash", 1)
	}
	return "BERTH_FAULTS=" + point + "=" + fate
}

var fates = []string{"fail-before", "fail-after", "crash-before", "crash-after"}

// chaos kills, stops and starts the daemon and kills shims, until ctx ends. Then
// it leaves a daemon that runs without armed points.
func (w *world) chaos(ctx context.Context, r *rand.Rand) {
	defer func() {
		if w.arms() || w.dead() {
			w.restart(r, false, false)
		}
	}()
	for {
		pause := time.NewTimer(time.Duration(100+r.IntN(1200)) * time.Millisecond)
		for waiting := true; waiting; {
			look := time.NewTimer(20 * time.Millisecond)
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
				waiting = false
			case <-look.C:
				if w.dead() { // of an armed point
					w.count("daemon died at a point")
					w.restart(r, false, false)
				}
			}
		}
		switch n := r.IntN(100); {
		case n < 45:
			w.restart(r, true, r.IntN(2) == 0)
		case n < 55:
			w.restart(r, false, false)
		case n < 85:
			w.killShim(r)
		default: // both, in either order
			first := r.IntN(2) == 0
			if first {
				w.killShim(r)
			}
			w.between(r, true, false, func() {
				if !first {
					w.killShim(r)
				}
			})
		}
	}
}

func (w *world) arms() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.armed
}

// dead tells whether the daemon has ended by itself.
func (w *world) dead() bool {
	pid := w.daemon.PID()
	if pid == 0 {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// restart ends the daemon and starts it again, maybe after a while, maybe with a
// fault point armed.
func (w *world) restart(r *rand.Rand, kill, arm bool) { w.between(r, kill, arm, func() {}) }

// between is restart with something to do while the daemon is down.
func (w *world) between(r *rand.Rand, kill, arm bool, do func()) {
	var err error
	if kill || w.dead() {
		w.count("daemon killed")
		err = w.daemon.Kill()
	} else {
		w.count("daemon stopped")
		err = w.daemon.Stop()
		if err != nil && w.arms() && strings.HasPrefix(err.Error(), "stop berthd: signal: killed") {
			w.count("daemon died at a point")
			err = nil // of an armed point, on its way out
		}
	}
	if err != nil && err != os.ErrProcessDone {
		w.t.Errorf("end the daemon: %v", err)
	}
	do()
	if r.IntN(3) == 0 {
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // it may be away for longer
	}
	w.daemon.Env = nil
	if arm {
		w.daemon.Env = []string{armament(r)}
		w.count("point armed")
	}
	w.mu.Lock()
	w.starts++
	w.armed = arm
	if arm {
		w.last = w.starts
	}
	w.mu.Unlock()
	if err := w.daemon.Start(); err == nil {
		return
	} else if !arm {
		w.t.Errorf("start the daemon: %v", err)
	}
	w.daemon.Env = nil
	w.mu.Lock()
	w.starts++
	w.armed = false
	w.mu.Unlock()
	if err := w.daemon.Start(); err != nil {
		w.t.Errorf("start the daemon: %v", err)
	}
}

// killShim kills one of the shims.
func (w *world) killShim(r *rand.Rand) {
	shims := w.shims()
	if len(shims) == 0 {
		return
	}
	s := shims[r.IntN(len(shims))]
	w.mu.Lock()
	w.doubt[s.id] = true
	w.mu.Unlock()
	w.count("shim killed")
	syscall.Kill(s.pid, syscall.SIGKILL)
}

type shim struct {
	pid int
	id  string
}

// shims finds the living shims of this run by the records of the bundles.
func (w *world) shims() []shim {
	bundles, _ := filepath.Glob(filepath.Join(w.daemon.State, "io.containerd.runtime.v2.task", "crash", w.mark+"*"))
	var found []shim
	for _, bundle := range bundles {
		var r record.Shim
		if record.Read(bundle, record.ShimFile, &r) == nil && startTime(r.PID) == r.StartTime {
			found = append(found, shim{r.PID, filepath.Base(bundle)})
		}
	}
	return found
}

// startTime reads when a process was started, 0 if it is none.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return 0
	}
	at, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return at
}
