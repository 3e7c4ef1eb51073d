package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/record"
)

// othersTime bounds how long the exit of init waits for processes that were
// killed with it, and hang in the kernel.
const othersTime = 10 * time.Second

// lateStartTime is how long a start may go on once init has ended.
const lateStartTime = 2 * time.Second

// unobserved is the status of a process that somebody else waited for.
const unobserved = 255

// watch waits for a process in the background and sees its exit through.
func (s *Shim) watch(p *process) {
	s.watchers.Go(func() {
		// It stays a zombie until its exit is on record: should this shim die
		// before, whoever becomes its parent can tell how it ended.
		ws, err := p.handle.Peek(context.Background())
		if p.isInit() {
			p.c.readOOM()
		}
		e := record.Exit{Version: record.Version, PID: p.pid, Status: exitStatus(ws), ExitedAt: time.Now().UTC()}
		if err != nil {
			e.Status, e.Reason = unobserved, fmt.Sprintf("exit unobserved: %v", err)
			s.config.Log.Error("exit unobserved", "task", p.c.id, "exec", p.id, "pid", p.pid, "error", err)
		}
		p.c.finish(p, e)
		if p.isInit() || !p.c.private {
			s.sweep()
		}
		s.trim.later()
	})
}

// reap takes a process whose exit is on record from the kernel.
func (s *Shim) reap(p *process) {
	ctx, cancel := cleaning(context.Background())
	defer cancel()
	// Before it is reaped: afterwards the pid may be that of a new process, which is
	// known, too. A sweep that is faster does no harm.
	s.known.remove(p.pid)
	if _, err := p.handle.Wait(ctx); err != nil && !errors.Is(err, sys.ErrNotChild) {
		s.config.Log.Warn("process not reaped", "task", p.c.id, "exec", p.id, "pid", p.pid, "error", err)
	}
}

// exitStatus is the wire's form of how a process ended: its code, or 128 and
// the number of the signal.
func exitStatus(ws unix.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// finish sees the exit of a process through, in the order that the package
// comment gives.
func (c *container) finish(p *process, e record.Exit) {
	if p.isInit() {
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		c.end()
	}
	c.awaitStart(p)
	if p.isInit() {
		c.endOthers()
	}
	log := c.shim.config.Log
	if !p.streams.settle() {
		log.Warn("exit reported before all output is read, the reader is slow", "task", c.id, "exec", p.id)
	}
	if p.isInit() && e.Status == 128+uint32(unix.SIGKILL) {
		c.recallOOM(p.pid)
	}
	e.OOMKills = c.countOOM()
	c.mu.Lock()
	if p.silent { // the record says what Delete answers and its event does, or who reads it says another thing
		e.Status, e.Reason = 0, "deleted before it was started"
	}
	c.mu.Unlock()
	if err := record.Write("shim.exit", p.dir, record.ExitFile, e); err != nil {
		log.Error("exit not recorded", "task", c.id, "exec", p.id, "status", e.Status, "error", err)
	}
	c.shim.reap(p)
	if p.isInit() {
		log.Info("task ended", "task", c.id, "pid", e.PID, "status", e.Status)
	} else {
		log.Debug("exec ended", "task", c.id, "exec", p.id, "pid", e.PID, "status", e.Status)
	}
	_ = p.handle.Close() // a descriptor without data
	c.mu.Lock()
	defer c.mu.Unlock()
	p.happen(Exited)
	p.exit = e
	if !p.silent {
		c.shim.config.Publish(topicExit, &apievents.TaskExit{
			ContainerId: c.id,
			Id:          p.eventID(),
			Pid:         uint32(e.PID),
			ExitStatus:  e.Status,
			ExitedAt:    protobuf.Timestamp(e.ExitedAt),
		})
	}
	close(p.exited)
}

// endOthers returns when every exec's exit has been seen through. Where the
// kernel does not end them with init, they are killed.
func (c *container) endOthers() {
	if !c.private {
		ctx, cancel := cleaning(context.Background())
		defer cancel()
		// The runtime finds them by cgroup. It fails if there are none.
		err := c.shim.call(func() error { return c.runtime.Kill(ctx, c.id, unix.SIGKILL, true) }, nil)
		if err != nil && len(c.execsIn(Running)) > 0 {
			c.shim.config.Log.Warn("processes of a container without a pid namespace not killed by the runtime", "task", c.id, "error", err)
		}
	}
	for _, p := range c.execsIn(Running) {
		c.awaitStart(p)
		c.mu.Lock()
		running, handle := p.state == Running, p.handle
		c.mu.Unlock()
		if !running {
			continue // its start failed
		}
		if !c.private {
			_ = handle.Signal(unix.SIGKILL) // it may be gone by now
		}
		if !within(othersTime, p.exited) {
			c.shim.config.Log.Error("exec outlives init", "task", c.id, "exec", p.id, "pid", p.pid)
		}
	}
}

// end kills a child that nobody watches yet and reaps it.
func (s *Shim) end(ctx context.Context, handle *sys.Process) error {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	_ = handle.Signal(unix.SIGKILL) // it may have ended by itself
	_, err := handle.Wait(ctx)
	s.known.remove(handle.PID())
	return errors.Join(err, handle.Close())
}

// isChild tells whether a process is a child of this one, so that its pid can't
// have been used again.
func isChild(pid int) bool {
	st, err := sys.ReadStat(pid)
	return err == nil && st.PPID == os.Getpid()
}
