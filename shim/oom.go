package shim

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/cgroup"
)

// topicOOM is published when the kernel's OOM killer has ended processes of a
// container, once for all that were ended since the last time.
const topicOOM = "/tasks/oom"

// oomLooks are the pauses ahead of the looks at the counters after an alarm. With
// version 1 of cgroups the alarm comes before the kernel has chosen whom to kill.
// They also bound how often a container that runs out of memory again and again
// is heard of.
var oomLooks = [...]time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, time.Second}

// oomWatch is one alarm for all containers of the shim, and the goroutine that it
// wakes while there are any. What an exit waits for does not depend on it:
// container.countOOM reads the counter itself.
type oomWatch struct {
	// mu guards what follows.
	mu      sync.Mutex
	alarm   *cgroup.Alarm // nil without containers
	done    chan struct{} // closed with the alarm
	members map[*container]struct{}
}

// oomCount is what is known of the OOM killer in one container.
type oomCount struct {
	group *cgroup.OOM

	// mu guards what follows, and that a count and its event are one.
	mu    sync.Mutex
	kills uint64
	seen  uint64 // read ahead, and not published
	stuck bool
}

// watchOOM begins to count what the OOM killer does in a container whose init is
// made. Where the kernel does not tell, nothing is counted.
func (c *container) watchOOM(pid int) {
	log := c.shim.config.Log
	group, err := cgroup.Of(pid)
	if err != nil {
		log.Debug("no OOM events", "task", c.id, "error", err)
		return
	}
	o, err := group.OpenOOM()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("no OOM events", "task", c.id, "error", err)
		}
		return
	}
	count := &oomCount{group: o}
	count.kills, _, _ = o.Kills() // a group that was there before may have some
	c.oom = count
	if err := c.shim.oom.add(c); err != nil {
		log.Warn("OOM events come with the exit alone", "task", c.id, "error", err)
	}
}

// countOOM tells how many processes of the container the OOM killer has ended, and
// publishes that there are new ones. The kernel counts before it kills, so whoever
// calls this after an exit and publishes the exit afterwards has the order right.
func (c *container) countOOM() uint64 {
	o := c.oom
	if o == nil {
		return 0
	}
	kills, stuck, err := o.group.Kills()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil { // the group is gone
		kills, stuck = o.seen, o.stuck
	}
	if kills > o.kills || stuck && !o.stuck {
		c.shim.config.Log.Info("out of memory", "task", c.id, "kills", kills, "stuck", stuck)
		c.shim.config.Publish(topicOOM, &apievents.TaskOOM{ContainerId: c.id})
	}
	o.kills, o.stuck = max(kills, o.kills), stuck
	return o.kills
}

// readOOM reads the counter ahead of countOOM: systemd removes a scope as soon as
// nothing runs in it any more, and its counter with it.
func (c *container) readOOM() {
	o := c.oom
	if o == nil {
		return
	}
	kills, _, err := o.group.Kills()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.seen = max(kills, o.seen)
	}
}

// recallOOM asks the kernel's log about a process that was killed, where its group
// was gone before its counter could be read: systemd may be faster than the shim.
func (c *container) recallOOM(pid int) {
	o := c.oom
	if o == nil {
		return
	}
	if _, _, err := o.group.Kills(); err == nil {
		return
	}
	o.mu.Lock()
	known := o.seen > 0 || o.kills > 0
	o.mu.Unlock()
	if known {
		return
	}
	killed, err := cgroup.Killed(pid)
	if err != nil {
		c.shim.config.Log.Warn("whether a process was killed for want of memory is not known: its cgroup is gone", "task", c.id, "pid", pid, "error", err)
	}
	if killed {
		o.mu.Lock()
		o.seen = 1
		o.mu.Unlock()
	}
}

// unwatchOOM ends the count.
func (c *container) unwatchOOM() {
	if c.oom != nil {
		c.shim.oom.remove(c)
		_ = c.oom.group.Close() // descriptors without data
	}
}

// add has the alarm cover a container.
func (w *oomWatch) add(c *container) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alarm == nil {
		alarm, err := cgroup.NewAlarm()
		if err != nil {
			return err
		}
		w.alarm, w.done, w.members = alarm, make(chan struct{}), map[*container]struct{}{}
		done := w.done
		c.shim.watchers.Go(func() { w.run(alarm, done) })
	}
	w.members[c] = struct{}{}
	return w.alarm.Watch(c.oom.group)
}

// remove takes a container out, and ends the alarm with the last one.
func (w *oomWatch) remove(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.members, c)
	if len(w.members) == 0 && w.alarm != nil {
		close(w.done)
		_ = w.alarm.Close() // a descriptor without data
		w.alarm = nil
	}
}

// run looks at every container when the alarm goes off. Which one it was for
// matters little: a look is one read of a small file. It goes on looking while a
// start is under way, whose event comes first.
func (w *oomWatch) run(alarm *cgroup.Alarm, done <-chan struct{}) {
	for alarm.Wait() == nil {
		for look, busy := 0, false; look < len(oomLooks) || busy; look++ {
			// At once means at once: systemd may be about to remove the group.
			if pause := oomLooks[min(look, len(oomLooks)-1)]; pause > 0 {
				select {
				case <-done:
					return
				case <-time.After(pause):
				}
			}
			busy = false
			for _, c := range w.list() {
				if c.starts() {
					c.readOOM()
					busy = true
				} else {
					c.countOOM()
				}
			}
		}
	}
}

// starts tells whether a process of the container is being started.
func (c *container) starts() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init == nil || c.init.starting != nil {
		return true
	}
	for _, p := range c.execs {
		if p.starting != nil {
			return true
		}
	}
	return false
}

func (w *oomWatch) list() []*container {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]*container, 0, len(w.members))
	for c := range w.members {
		list = append(list, c)
	}
	return list
}
