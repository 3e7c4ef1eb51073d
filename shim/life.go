package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/record"
)

// startInit lets init run its program.
func (c *container) startInit(ctx context.Context) (pid int, err error) {
	if err := c.enter(ctx); err != nil {
		return 0, err
	}
	defer c.leave()
	p := c.init
	end, err := c.beginStart(p)
	if err != nil {
		return 0, err
	}
	ctx, done := c.whileAlive(ctx)
	defer done()
	restores := c.report(p).state == FromCheckpoint
	if restores {
		err = c.restore(ctx, p)
	} else {
		err = c.shim.call(func() error { return c.runtime.Start(ctx, c.id) }, nil)
	}
	end(err, topicStart, &apievents.TaskStart{ContainerId: c.id, Pid: uint32(p.pid)})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.name(), err)
	}
	if restores {
		c.shim.watch(p)
	}
	c.shim.config.Log.Info("task started", "task", c.id, "pid", p.pid)
	return p.pid, nil
}

// beginStart asks whether the process may be started and makes its exit wait
// for the end of the start. end has to be called: it takes the state further
// and queues the event, before any exit of the process.
func (c *container) beginStart(p *process) (end func(err error, topic string, event proto.Message), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := p.permit(Start); err != nil {
		return nil, err
	}
	if p.starting != nil {
		return nil, fmt.Errorf("%s: is being started already", p.name())
	}
	if !p.isInit() {
		if err := c.canRunExec(); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name(), err)
		}
	}
	starting := make(chan struct{})
	p.starting = starting
	return func(err error, topic string, event proto.Message) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == nil {
			p.happen(Start)
			c.shim.config.Publish(topic, event)
		}
		p.starting = nil
		close(starting)
	}, nil
}

// pause freezes the container.
func (c *container) pause(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	p := c.init
	c.mu.Lock()
	err := p.permit(Pause)
	if err == nil {
		p.happen(Pause)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := c.shim.call(func() error { return c.runtime.Pause(ctx, c.id) }, nil); err != nil {
		c.happen(p, NotFrozen)
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.state == Pausing {
		p.happen(Frozen)
		c.shim.config.Publish(topicPaused, &apievents.TaskPaused{ContainerId: c.id})
	}
	return nil
}

// resume lets a paused container go on.
func (c *container) resume(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	p := c.init
	if err := c.permit(p, Resume); err != nil {
		return err
	}
	if err := c.shim.call(func() error { return c.runtime.Resume(ctx, c.id) }, nil); err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.state == Paused {
		p.happen(Resume)
		c.shim.config.Publish(topicResumed, &apievents.TaskResumed{ContainerId: c.id})
	}
	return nil
}

// update sets new limits.
func (c *container) update(ctx context.Context, resources []byte) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	if err := c.permit(c.init, Update); err != nil {
		return err
	}
	if c.report(c.init).state == FromCheckpoint {
		return c.updateLater(resources)
	}
	if err := c.shim.call(func() error { return c.runtime.Update(ctx, c.id, resources) }, nil); err != nil {
		return fmt.Errorf("%s: %w", c.init.name(), err)
	}
	return nil
}

// delete removes a task that has ended, or was never started. If it fails it
// can be tried again.
func (c *container) delete(ctx context.Context) (report, error) {
	if err := c.enter(ctx); err != nil {
		return report{}, err
	}
	defer c.leave()
	p := c.init
	c.mu.Lock()
	_, action, err := p.table().step(p.state, Delete)
	p.silent = p.silent || action == KillCleanUp || action == Drop
	c.mu.Unlock()
	if err != nil {
		return report{}, fmt.Errorf("%s: %w", p.name(), err)
	}
	if action == CleanUp && !p.streams.drain() {
		c.shim.config.Log.Warn("output cut off, a process holds it open", "task", c.id)
	}
	if err := c.shim.call(func() error { return c.runtime.Delete(ctx, c.id, true) }, nil); err != nil {
		c.mu.Lock()
		p.silent = p.silent && p.state == Stopped // else it lives on, and its exit counts
		c.mu.Unlock()
		return report{}, fmt.Errorf("%s: %w", p.name(), err)
	}
	if action == KillCleanUp {
		if !within(drainTime, p.exited) {
			return report{}, fmt.Errorf("%s: still there %s after the OCI runtime deleted it", p.name(), drainTime)
		}
		p.streams.close()
	}
	if action == Drop {
		c.dropUnrestored(p)
	}
	c.dropExecs()
	if c.mounted {
		if err := c.shim.config.Mounter.Unmount(filepath.Join(c.bundle, record.RootfsDir)); err != nil {
			return report{}, fmt.Errorf("%s: unmount rootfs: %w", p.name(), err)
		}
	}
	c.unwatchOOM()
	st := c.deleted(p)
	c.shim.remove(c)
	c.shim.config.Publish(topicDelete, &apievents.TaskDelete{
		ContainerId: c.id,
		Pid:         uint32(st.pid),
		ExitStatus:  st.exit.Status,
		ExitedAt:    protobuf.Timestamp(st.exit.ExitedAt),
	})
	c.shim.config.Log.Info("task deleted", "task", c.id)
	c.shim.sweep()
	return st, nil
}

// deleted takes a process to its last state and tells how it had ended. One
// that was never started ended with 0 as far as the wire is concerned.
func (c *container) deleted(p *process) report {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.silent {
		p.exit.Status = 0
	}
	p.state = Deleted
	close(p.gone)
	return report{state: Deleted, pid: p.pid, exit: p.exit}
}

// deleteExec removes an exec that has ended, or was never started.
func (c *container) deleteExec(p *process) (report, error) {
	c.mu.Lock()
	err := p.permit(Delete)
	if err == nil && p.starting != nil {
		err = fmt.Errorf("%s: is being started", p.name())
	}
	if err == nil {
		p.state = Deleted // so that it is deleted once
	}
	c.mu.Unlock()
	if err != nil {
		return report{}, err
	}
	if p.streams != nil && !p.streams.drain() {
		c.shim.config.Log.Warn("output cut off, a process holds it open", "task", c.id, "exec", p.id)
	}
	c.forget(p)
	return c.deleted(p), nil
}

// dropExecs removes the execs that nobody deleted before the task.
func (c *container) dropExecs() {
	for _, p := range c.execsIn(Created, Running, Stopped) {
		c.mu.Lock()
		mine := p.state != Deleted
		if mine {
			p.state = Deleted
			close(p.gone)
		}
		c.mu.Unlock()
		if mine {
			c.forget(p)
		}
	}
}

// forget takes an exec out of the table and removes its files.
func (c *container) forget(p *process) {
	if p.streams != nil {
		p.streams.close()
	}
	// What stays is removed with the bundle.
	if err := os.RemoveAll(p.dir); err != nil {
		c.shim.config.Log.Warn("files of an exec not removed", "task", c.id, "exec", p.id, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.id)
}
