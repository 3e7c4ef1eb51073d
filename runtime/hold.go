package runtime

import (
	"errors"
	"os"
	"path/filepath"

	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// holdExec takes a handle on an exec that was started: should its shim die, the
// kernel tells the status to whoever held one while the exec lived.
func (t *Tasks) holdExec(k *task, exec string) {
	started, err := readRecord[record.Started](execDir(k.dir, exec), record.StartedFile)
	if err == nil && started != nil && sys.Alive(started.PID, started.StartTime) {
		err = k.hold(k.process(exec), *started)
	}
	if err != nil {
		t.cfg.Log.Warn("no handle on an exec: its status is lost if the shim and it end at once",
			"namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	}
}

// holdExecs takes handles on the execs of an adopted task.
func (t *Tasks) holdExecs(k *task) {
	for _, exec := range execRecords(k.dir) {
		t.holdExec(k, exec)
	}
}

// letGo gives up the handle on an exec.
func (k *task) letGo(exec string) {
	k.mu.Lock()
	var handle *sys.Process
	if p := k.execs[exec]; p != nil && !p.watched {
		handle, p.handle = p.handle, nil
	}
	k.mu.Unlock()
	if handle != nil {
		_ = handle.Close()
	}
}

// noteRan records that an adopted task was started, where the daemon that
// started it did not come to that.
func (t *Tasks) noteRan(k *task) {
	k.mu.Lock()
	ran, status := k.ran, k.status
	k.mu.Unlock()
	if !ran || status == apitask.Status_STOPPED {
		return
	}
	if _, err := os.Lstat(filepath.Join(k.dir, record.StatusFile)); errors.Is(err, os.ErrNotExist) {
		t.noteStatus(k, status)
	}
}

// lookFrozen finds out whether a started container whose shim has died is
// paused: the last call of the shim may have changed that without an answer.
func (t *Tasks) lookFrozen(k *task) {
	v := k.view()
	if v.status != apitask.Status_RUNNING && v.status != apitask.Status_PAUSED {
		return
	}
	group, err := cgroup.Of(v.init.PID)
	if err != nil {
		return // it has none of its own, or has just ended
	}
	frozen, err := group.Frozen()
	if err != nil {
		t.cfg.Log.Warn("no telling whether the container is paused", "namespace", k.ns, "id", k.id, "error", err)
		return
	}
	status := apitask.Status_RUNNING
	if frozen {
		status = apitask.Status_PAUSED
	}
	if status != v.status {
		t.noteStatus(k, status)
	}
}
