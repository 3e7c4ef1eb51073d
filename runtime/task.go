package runtime

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// standing is how a task stands to this daemon.
type standing uint8

const (
	creating    standing = iota // Create is at work; no other call sees the task
	adopting                    // not known, or not known yet
	connected                   // its shim answers
	lost                        // its shim is dead, a process of it lives
	stopped                     // its shim is gone, init has ended
	quarantined                 // its records can't be understood
	leaving                     // deleted; its shim is on its way out
)

var standingNames = [...]string{"adopting", "adopting", "connected", "shim-lost", "stopped", "quarantined", "stopped"}

// hidden tells whether calls don't see the task: not yet, or no more.
func (s standing) hidden() bool { return s == creating || s == leaving }

// String is the standing's name in reports.
func (s standing) String() string { return standingNames[s] }

// task is one entry of the table.
type task struct {
	ns, id string
	dir    string // the bundle
	socket string

	// lane is held while the bundle, the shim or the standing is being made,
	// judged or removed.
	lane lane
	// publishing is held while an exit or delete event is on its way, so that
	// each is published once and in order.
	publishing lane
	// kick asks for another try at a shim that did not answer.
	kick chan struct{}

	// ctx ends when the task leaves the table, or the daemon leaves it alone.
	ctx   context.Context
	leave context.CancelFunc

	// mu guards what follows. It is never held over I/O.
	mu        sync.Mutex
	stand     standing
	reason    string
	judged    bool          // adopting: a first verdict is in
	changed   chan struct{} // closed and replaced when stand or judged changes
	conn      *conn         // connected
	at        contact       // where the shim listens
	child     *child        // the shim, if this daemon started it
	intent    record.Intent
	shim      record.Shim
	status    apitask.Status // of init as last known; STOPPED once its exit is
	ran       bool           // init was started
	init      *process
	execs     map[string]*process // those somebody waits for or that outlived the shim
	seen      seen
	flight    *deletion    // the Delete that is under way
	deleted   *record.Exit // what the shim answered to Delete
	following bool         // a foreign shim's log is being followed
	shelved   string       // where the bundle's files are once its name is free
}

// seen says which events were published.
type seen struct {
	exits   map[string]int // pid by exec id; "" is init
	kept    int            // how many prune has left
	deleted bool
}

// process is one process of a task, as those who wait for it see it.
type process struct {
	exec string // "" for init

	// done is closed once exit or err is set.
	done chan struct{}
	exit record.Exit
	err  error // why the exit will never be known

	started record.Started // zero if not known
	handle  *sys.Process   // nil if not held
	asked   *conn          // the connection over which its shim is being asked
	watched bool           // its shim is dead; a goroutine waits for its end
}

func newProcess(exec string) *process { return &process{exec: exec, done: make(chan struct{})} }

// over tells whether the process's end is known. Needs the task's mu.
func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// resolve sets how the process ended, unless that is known. Needs the task's mu.
func (p *process) resolve(exit record.Exit, err error) {
	if p.over() {
		return
	}
	p.exit, p.err = exit, err
	close(p.done)
}

func (t *Tasks) newTask(ns, id string, s standing) *task {
	k := &task{
		ns: ns, id: id, dir: t.bundles.path(ns, id),
		lane: newLane(), publishing: newLane(), kick: make(chan struct{}, 1),
		stand: s, changed: make(chan struct{}),
		status: apitask.Status_UNKNOWN,
		init:   newProcess(""), execs: map[string]*process{},
		seen: seen{exits: map[string]int{}},
	}
	k.settle(socketPath(t.cfg.State, ns, id))
	k.ctx, k.leave = context.WithCancel(t.ctx)
	return k
}

// set changes the standing and wakes who waits for that.
func (k *task) set(s standing, reason string, c *conn) {
	k.mu.Lock()
	k.stand, k.reason, k.conn, k.judged = s, reason, c, true
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	if c != nil && k.ctx.Err() != nil {
		c.close() // close came before
	}
}

// exited notes that init has ended.
func (k *task) exited(exit record.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.init.resolve(exit, nil)
	k.status = apitask.Status_STOPPED
}

// setStatus notes the status of init, unless its end is known.
func (k *task) setStatus(s apitask.Status) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.init.over() {
		k.status = s
	}
	k.ran = k.ran || s != apitask.Status_CREATED && s != apitask.Status_UNKNOWN
}

// process gives the entry of a process, and makes it if need be.
func (k *task) process(exec string) *process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.processLocked(exec)
}

func (k *task) processLocked(exec string) *process {
	if exec == "" {
		return k.init
	}
	p := k.execs[exec]
	if p == nil {
		p = newProcess(exec)
		k.execs[exec] = p
	}
	return p
}

// forget drops the entry of an exec; who still waits for it gets err.
func (k *task) forget(exec string, err error) {
	k.mu.Lock()
	p := k.execs[exec]
	delete(k.execs, exec)
	delete(k.seen.exits, exec)
	var handle *sys.Process
	if p != nil {
		p.resolve(record.Exit{}, err)
		handle, p.handle = p.handle, nil
	}
	k.mu.Unlock()
	if handle != nil {
		_ = handle.Close()
	}
}

// forgetProcess is forget for an entry that is known to be bad, unless another
// has taken its place.
func (k *task) forgetProcess(p *process, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.execs[p.exec] == p {
		delete(k.execs, p.exec)
	}
	p.resolve(record.Exit{}, err)
}

// release ends every wait for the task.
func (k *task) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.execs {
		p.resolve(record.Exit{}, notFound(k.id))
	}
	k.init.resolve(record.Exit{}, notFound(k.id))
}

// view is a look at a task at one moment.
type view struct {
	stand   standing
	reason  string
	judged  bool
	changed chan struct{}
	conn    *conn
	status  apitask.Status
	intent  record.Intent
	shimPID int
	init    record.Started
	exit    *record.Exit // of init, if known
}

func (k *task) view() view {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := view{
		stand: k.stand, reason: k.reason, judged: k.judged, changed: k.changed, conn: k.conn,
		status: k.status, intent: k.intent, shimPID: k.shim.PID, init: k.init.started,
	}
	if k.init.over() && k.init.err == nil {
		exit := k.init.exit
		v.exit = &exit
	}
	return v
}

// settled waits until it is known how the task stands, for at most limit.
func (k *task) settled(ctx context.Context, limit time.Duration) (view, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		v := k.view()
		if v.stand != adopting || v.judged {
			return v, nil
		}
		select {
		case <-v.changed:
		case <-timer.C:
			return v, nil
		case <-k.ctx.Done():
			return v, notFound(k.id)
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// after waits, for at most limit, until the task no longer stands as in v: the
// connection of v has ended.
func (k *task) after(ctx context.Context, v view, limit time.Duration) view {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-v.changed:
	case <-timer.C:
	case <-k.ctx.Done():
	case <-ctx.Done():
	}
	return k.view()
}

// try asks for another try at a shim that did not answer.
func (k *task) try() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// close gives up what is held for the task: its connection and handles.
func (k *task) close() {
	k.leave()
	k.mu.Lock()
	c := k.conn
	var handles []*sys.Process
	for _, p := range k.execs {
		handles = append(handles, p.handle)
		p.handle = nil
	}
	handles = append(handles, k.init.handle)
	k.init.handle = nil
	k.mu.Unlock()
	if c != nil {
		c.close()
	}
	for _, h := range handles {
		if h != nil {
			_ = h.Close()
		}
	}
}

func notFound(id string) error {
	return fmt.Errorf("task ID %q: %w", id, errdefs.ErrNotFound)
}
