package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// container is one task: its init process and execs.
type container struct {
	shim    *Shim
	id      string
	bundle  string
	how     record.Runtime
	runtime Runtime
	owner   owner
	claim   *os.File // of the bundle, unless the process has claimed it
	mounted bool     // rootfs holds mounts that Delete has to undo

	// noPivot and noKeyring are the runc options of the same meaning.
	noPivot, noKeyring bool
	shimGroup          string // where the shim itself is to be: the option shim_cgroup

	source  *source  // of a task created from a checkpoint
	pending [][]byte // limits for it, from before its restore; guarded by the lane

	oom *oomCount // set by Create; nil where the kernel does not tell

	// lane lets one call at a time change the task; see the package comment.
	lane chan struct{}

	// mu guards init (nil until created), execs, and the changing fields of
	// every process of the container.
	mu    sync.Mutex
	init  *process
	execs map[string]*process
	// ended tells that init has ended: no exec starts any more. life, which
	// needs no lock, ends with it.
	ended bool
	life  context.Context
	end   context.CancelFunc
	// private tells that init is the first of its pid namespace, so that the
	// kernel ends all others with it.
	private bool
}

// process is init or an exec.
type process struct {
	c     *container
	id    string // exec id; "" is init
	dir   string // its files: the bundle, or execs/EXEC in it
	paths streamPaths
	spec  []byte // of an exec: runtime-spec Process

	// What follows is guarded by container.mu.

	state    State
	pid      int
	exit     record.Exit
	handle   *sys.Process
	streams  *streams
	starting chan struct{} // while a Start is under way; closed at its end
	silent   bool          // its exit is not published: deleted before it was started
	noInput  bool          // CloseIO came before the streams

	// exited is closed once the exit record is written and exit is set; gone
	// once the process was deleted.
	exited chan struct{}
	gone   chan struct{}
}

func newProcess(c *container, id, dir string, paths streamPaths) *process {
	return &process{c: c, id: id, dir: dir, paths: paths, exited: make(chan struct{}), gone: make(chan struct{})}
}

// place is the process as its streams need it.
func (p *process) place() place {
	return place{shim: p.c.shim, container: p.c.id, dir: p.dir, owner: p.c.owner, log: p.c.shim.config.Log.With("task", p.c.id, "exec", p.id)}
}

// isInit tells init from an exec.
func (p *process) isInit() bool { return p.id == "" }

// name is how errors call the process.
func (p *process) name() string {
	if p.isInit() {
		return fmt.Sprintf("task %q", p.c.id)
	}
	return fmt.Sprintf("exec %q of task %q", p.id, p.c.id)
}

// eventID is the id of the process in events.
func (p *process) eventID() string {
	if p.isInit() {
		return p.c.id
	}
	return p.id
}

// table returns the transition table of the process.
func (p *process) table() table {
	if p.isInit() {
		return taskTable
	}
	return execTable
}

// permit asks the table whether the event may happen, without letting it.
// Callers hold container.mu.
func (p *process) permit(e Event) error {
	_, _, err := p.table().step(p.state, e)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	return nil
}

// happen lets an event take effect on the state. Callers hold container.mu. An
// event that came too late, because the process ended meanwhile, has none.
func (p *process) happen(e Event) {
	if next, _, err := p.table().step(p.state, e); err == nil {
		p.state = next
	}
}

// permit is process.permit under the lock.
func (c *container) permit(p *process, e Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.permit(e)
}

// happen is process.happen under the lock.
func (c *container) happen(p *process, e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.happen(e)
}

// whileAlive bounds a start by the life of init: once that has ended there is
// nothing left to start, and its exit waits for who tries. What is about to
// succeed gets the time for it.
func (c *container) whileAlive(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.life, func() { time.AfterFunc(lateStartTime, cancel) })
	return ctx, func() { stop(); cancel() }
}

// enter takes the lane.
func (c *container) enter(ctx context.Context) error {
	select {
	case c.lane <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("task %q: waiting for another call to end: %w", c.id, ctx.Err())
	}
}

// leave gives the lane back.
func (c *container) leave() { <-c.lane }

// call runs a call of the runtime which may leave processes behind; adopt, run
// after it succeeded, makes them known before strays may be swept. After one
// that failed there may be strays.
func (s *Shim) call(do, adopt func() error) error {
	err := s.callLocked(do, adopt)
	if err != nil {
		s.sweep()
	}
	return err
}

func (s *Shim) callLocked(do, adopt func() error) error {
	s.spawning.RLock()
	defer s.spawning.RUnlock()
	if err := do(); err != nil || adopt == nil {
		return err
	}
	return adopt()
}

// adopt takes the process that the runtime has made: reads its pid, opens a
// handle, records it.
func (p *process) adopt(pidFile string) error {
	pid, err := readPID(pidFile)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	handle, err := sys.OpenProcess(pid)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	p.c.shim.known.add(pid)
	p.c.mu.Lock()
	p.pid, p.handle = pid, handle
	p.c.mu.Unlock()
	started := record.Started{Version: record.Version, PID: pid, StartTime: handle.StartTime()}
	return record.Write("shim.started", p.dir, record.StartedFile, started)
}

// kill sends a signal to the process or, of init, to all of the container.
func (c *container) kill(ctx context.Context, p *process, sig unix.Signal, all bool) error {
	if !p.isInit() {
		c.mu.Lock()
		err, handle := p.permit(Kill), p.handle
		c.mu.Unlock()
		if err != nil {
			return err
		}
		err = os.ErrProcessDone
		if handle.Alive() { // a zombie takes a signal, and is none the worse
			err = handle.Signal(sig)
		}
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("%s: process already finished: %w", p.name(), errdefs.ErrNotFound)
		}
		return err
	}
	if sig == unix.SIGKILL {
		if err := c.thaw(ctx); err != nil {
			return err
		}
	}
	if err := c.permit(p, Kill); err != nil {
		return err
	}
	if c.report(p).state == FromCheckpoint {
		return fmt.Errorf("%s: has no process before it is restored: %w", p.name(), errdefs.ErrNotFound)
	}
	err := c.shim.call(func() error { return c.runtime.Kill(ctx, c.id, sig, all) }, nil)
	switch {
	case err == nil:
		return nil
	case !p.handle.Alive():
		return fmt.Errorf("%s: process already finished: %w", p.name(), errdefs.ErrNotFound)
	case sig == unix.SIGKILL && !all:
		// The runtime is broken or hangs; the kernel does not.
		c.shim.config.Log.Warn("runtime failed to kill, killing directly", "task", c.id, "error", err)
		return p.handle.Signal(sig)
	}
	return err
}

// thaw resumes a task that is paused or about to be, since what is frozen by a
// cgroup of version 1 can not be killed. A task in any other state is left alone.
func (c *container) thaw(ctx context.Context) error {
	c.mu.Lock()
	paused := c.init.state == Paused || c.init.state == Pausing
	c.mu.Unlock()
	if !paused {
		return nil
	}
	err := c.resume(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.state != Paused {
		return nil // somebody else resumed it, or it ended
	}
	return err
}

// report is what there is to tell of a process.
type report struct {
	state State
	pid   int
	exit  record.Exit
}

// report tells of a process. An exec of a paused task counts as paused.
func (c *container) report(p *process) report {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := report{state: p.state, pid: p.pid, exit: p.exit}
	if p.state == Running && !p.isInit() && (c.init.state == Paused || c.init.state == Pausing) {
		st.state = c.init.state
	}
	return st
}

// streamsOf returns the streams of a process; nil before an exec is started.
func (c *container) streamsOf(p *process) *streams {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.streams
}

// closeInput lets the input of a process end, of an exec also ahead of its start.
func (c *container) closeInput(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.noInput = true
	if p.streams != nil {
		p.streams.closeStdin()
	}
}

// wait blocks until the process has ended. One deleted without having been
// started never does.
func (c *container) wait(ctx context.Context, p *process) (record.Exit, error) {
	select {
	case <-p.exited:
	case <-p.gone:
	case <-ctx.Done():
		return record.Exit{}, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.silent || p.exit.ExitedAt.IsZero() {
		return record.Exit{}, fmt.Errorf("%s was deleted before it was started: %w", p.name(), errdefs.ErrNotFound)
	}
	return p.exit, nil
}

// execsIn lists the execs that are in one of the states or being started.
func (c *container) execsIn(states ...State) []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*process
	for _, p := range c.execs {
		if p.starting != nil {
			list = append(list, p)
			continue
		}
		for _, s := range states {
			if p.state == s {
				list = append(list, p)
			}
		}
	}
	return list
}

// awaitStart waits for a Start that is under way.
func (c *container) awaitStart(p *process) {
	c.mu.Lock()
	starting := p.starting
	c.mu.Unlock()
	if starting != nil {
		<-starting
	}
}

// within waits for a channel to be closed, for at most d.
func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
