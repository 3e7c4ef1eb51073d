package shim

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// strayTime is how often the shim looks for strays while there may be new ones.
const strayTime = 10 * time.Second

// sweep reaps strays: orphans from below containers, and what a failed call of
// the runtime left, which the kernel gave to this subreaper. It does nothing
// while a call of the runtime is under way, since a child may then be one that
// this call waits for, or will tell of.
//
// There is no signal handler behind it. Strays come from failed calls and from
// containers without a pid namespace of their own; after the one, and as long
// as there is one of the others, the shim looks again by itself.
func (s *Shim) sweep() {
	if !s.spawning.TryLock() {
		s.sweepLater()
		return
	}
	alive := s.reapStrays()
	s.spawning.Unlock()
	if alive || s.leaky() {
		s.sweepLater()
	}
}

// reapStrays reaps the dead among the unknown children and tells whether there
// are live ones. Callers hold spawning.
func (s *Shim) reapStrays() (alive bool) {
	if !sys.HasChildren() {
		return false // the rule, and much cheaper to know than which they are
	}
	children, err := sys.Children(os.Getpid())
	if err != nil {
		s.config.Log.Error("strays not swept", "error", err)
		return false
	}
	for _, pid := range children {
		if s.known.has(pid) {
			continue
		}
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		alive = alive || err == nil && got == 0
	}
	return alive
}

// pidSet holds the children that somebody waits for.
type pidSet struct {
	mu  sync.Mutex
	set map[int]struct{}
}

func (k *pidSet) add(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil {
		k.set = map[int]struct{}{}
	}
	k.set[pid] = struct{}{}
}

func (k *pidSet) remove(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.set, pid)
}

func (k *pidSet) has(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.set[pid]
	return ok
}

// leaky tells whether a container's orphans come to the shim.
func (s *Shim) leaky() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		c.mu.Lock()
		leaky := c.init != nil && !c.private && !c.ended
		c.mu.Unlock()
		if leaky {
			return true
		}
	}
	return false
}

// sweepLater sweeps after a while.
func (s *Shim) sweepLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweeper == nil {
		s.sweeper = time.AfterFunc(strayTime, s.sweep)
		return
	}
	s.sweeper.Reset(strayTime)
}
