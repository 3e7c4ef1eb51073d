package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// records is what the files of a bundle say. A pointer is nil where the file is
// missing.
type records struct {
	intent  *record.Intent
	shim    *record.Shim
	started *record.Started
	exit    *record.Exit
	status  apitask.Status
	ran     bool // init was started, as far as the daemon noted
	seen    seen
	damaged error
	at      *contact // of a foreign shim
}

func readRecords(dir string) records {
	r := records{seen: readSeen(dir)}
	var errs [4]error
	r.intent, errs[0] = readRecord[record.Intent](dir, record.IntentFile)
	r.shim, errs[1] = readRecord[record.Shim](dir, record.ShimFile)
	r.started, errs[2] = readRecord[record.Started](dir, record.StartedFile)
	r.exit, errs[3] = readRecord[record.Exit](dir, record.ExitFile)
	if r.intent == nil && errs[0] == nil {
		errs[0] = fmt.Errorf("%s: no such record", filepath.Join(dir, record.IntentFile))
	}
	r.damaged = errors.Join(errs[:]...)
	if r.intent != nil && r.intent.Foreign {
		if at, err := readContact(dir); err == nil { // else it never said
			r.at = &at
		}
	}
	status, _ := readRecord[record.Status](dir, record.StatusFile) // a hint only
	r.ran = status != nil
	switch {
	case r.exit != nil && r.started == nil: // see take
	case r.exit != nil:
		r.status = apitask.Status_STOPPED
	case status != nil:
		r.status = apitask.Status(apitask.Status_value[status.Status])
	case r.started != nil:
		r.status = apitask.Status_CREATED
	}
	return r
}

// contact tells where the task's shim listens.
func (k *task) contact() contact {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at
}

// readRecord reads a record; nil if the file is missing.
func readRecord[R any](dir, file string) (*R, error) {
	var v R
	err := record.Read(dir, file, &v)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// take notes in the table what the records say.
func (k *task) take(r records) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.intent != nil {
		k.intent = *r.intent
	}
	if r.shim != nil {
		k.shim = *r.shim
	}
	if r.at != nil {
		k.at = *r.at
	}
	if r.started != nil {
		k.init.started = *r.started
	}
	if !k.init.over() && r.status != apitask.Status_UNKNOWN && k.status == apitask.Status_UNKNOWN {
		k.status = r.status
	}
	k.ran = k.ran || r.ran
	// An exit without a start is what cleaning up after a create that came to
	// nothing leaves: there is no task that has ended, and none is shown.
	if r.exit != nil && (r.started != nil || k.init.started.PID != 0) {
		k.init.resolve(*r.exit, nil)
		k.status = apitask.Status_STOPPED
	}
	for exec, pid := range r.seen.exits {
		k.seen.exits[exec] = pid
	}
	k.seen.deleted = k.seen.deleted || r.seen.deleted
}

// ofEarlierBoot tells whether a bundle is of before the machine was booted.
// rebooted is what the state directory says as a whole, for a bundle whose own
// record can't be read.
func (t *Tasks) ofEarlierBoot(r records, rebooted bool) bool {
	if r.intent != nil && r.intent.BootID != "" {
		return r.intent.BootID != t.bootID
	}
	return rebooted
}

// gather finds out what there is to know about a task. The connection is nil
// unless the shim answered.
func (t *Tasks) gather(ctx context.Context, k *task) (facts, *conn) {
	r := readRecords(k.dir)
	k.take(r)
	f := facts{
		Rebooted: t.ofEarlierBoot(r, false), Damaged: r.damaged,
		Started: r.started != nil, Exited: r.exit != nil,
	}
	if f.Rebooted || f.Damaged != nil {
		return f, nil
	}
	var c *conn
	var state *shimtask.StateResponse
	f.Dial, c, state = t.probe(ctx, k)
	if state != nil {
		f.Holds = true
		k.setStatus(state.GetStatus())
	}
	if f.Dial == refused && r.shim != nil {
		awaitDeath(ctx, *r.shim)
	}
	// The shim may have gone on between: what it wrote last counts.
	if f.Dial != answered || !f.Holds {
		r = readRecords(k.dir)
		k.take(r)
		f.Damaged, f.Started, f.Exited = r.damaged, r.started != nil, r.exit != nil
	}
	if r.shim != nil {
		f.Shim = lifeOf(r.shim.PID, r.shim.StartTime)
	}
	if r.started != nil {
		f.Init = lifeOf(r.started.PID, r.started.StartTime)
	}
	return f, c
}

// dyingTime bounds how long a shim whose socket is closed may take to be dead
// before it counts as one that lives without its socket.
const dyingTime = 500 * time.Millisecond

// awaitDeath waits for the death of a shim on whose socket nobody listens. The
// kernel closes the files of a process that ends before the process is dead:
// who looks between finds neither a shim nor proof of its death, and would keep
// the task as unknown until the next try.
func awaitDeath(ctx context.Context, s record.Shim) {
	if lifeOf(s.PID, s.StartTime) != alive {
		return
	}
	p, err := sys.OpenProcess(s.PID)
	if err != nil {
		return // it ended just now
	}
	defer p.Close()
	if p.StartTime() != s.StartTime {
		return // another process has the pid by now
	}
	ctx, cancel := context.WithTimeout(ctx, dyingTime)
	defer cancel()
	_ = p.Exited(ctx) // what there is to know is read anew
}

// lifeOf tells whether a recorded process lives. One without a start time is not
// of this machine, and can't be told of.
func lifeOf(pid int, start uint64) life {
	if start == 0 {
		return unrecorded
	}
	if sys.Alive(pid, start) {
		return alive
	}
	return dead
}

// probe asks a shim for the task's state, which is nil where it has no such
// task.
func (t *Tasks) probe(ctx context.Context, k *task) (answer, *conn, *shimtask.StateResponse) {
	// A shim that is just ending may close its sockets one after the other.
	const tries = 3
	for range tries {
		dialCtx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Connect)
		c, err := t.dial(dialCtx, k.contact(), false)
		cancel()
		if err != nil {
			return dialAnswer(err), nil, nil
		}
		state, err := call(ctx, c, "tell the task's state", t.cfg.Deadlines.Connect, c.shim.State, &shimtask.StateRequest{Id: k.id})
		if err == nil {
			return answered, c, state
		}
		if errdefs.IsNotFound(err) {
			return answered, c, nil
		}
		c.close()
		if !errors.Is(err, errShimGone) {
			break
		}
	}
	return silent, nil, nil
}

// hold opens a handle on a process of the task by its record. That it is gone is
// no error; then there is no handle.
func (k *task) hold(p *process, s record.Started) error {
	if s.PID == 0 {
		return nil // not known yet
	}
	handle, err := sys.OpenProcess(s.PID)
	if errors.Is(err, os.ErrProcessDone) {
		handle, err = nil, nil
	}
	if err != nil {
		return err
	}
	if handle != nil && handle.StartTime() != s.StartTime { // another one has the pid now
		err, handle = handle.Close(), nil
	}
	k.mu.Lock()
	p.started = s
	old := p.handle
	if old == nil && k.ctx.Err() == nil {
		p.handle, handle = handle, nil
	}
	k.mu.Unlock()
	if handle != nil { // there was one already, or the task has gone
		err = errors.Join(err, handle.Close())
	}
	return err
}

// execRecords lists the ids of the execs that have a record.
func execRecords(dir string) []string {
	entries, _ := os.ReadDir(filepath.Join(dir, record.ExecsDir))
	var execs []string
	for _, e := range entries {
		if e.IsDir() && names.Identifier(e.Name()) == nil {
			execs = append(execs, e.Name())
		}
	}
	return execs
}
