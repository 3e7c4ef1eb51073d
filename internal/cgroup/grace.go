package cgroup

import (
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Grace has the kernel's grace period pass while something else is done.
//
// Whoever moves a process into a cgroup takes a lock that every fork of the
// machine shares. The kernel makes it cheap for the forks and dear for the
// mover: the first one waits for an RCU grace period, some 10 ms. Those that come
// while it is held, or until another such period has passed, don't (rcu_sync,
// kernel/rcu/sync.c). An OCI runtime meets this wait in the middle of create and
// of exec, as the first mover after a pause.
//
// So who is about to call a runtime has the lock taken at once and again every
// few milliseconds: this process is moved into the very group that it is in,
// which changes nothing. Where that is refused nothing is gained and nothing
// lost.
type Grace struct {
	open func() (io.WriteCloser, error) // cgroup.procs of the group that we are in
	wg   sync.WaitGroup

	// mu guards what follows.
	mu    sync.Mutex
	holds int
	until time.Time     // when the last hold is over at the latest
	soon  time.Time     // until when a hold is expected
	busy  bool          // run is running
	idle  chan struct{} // a token: there is no hold any more
	off   bool          // closed, or refused
}

const (
	// graceEvery is less than any grace period takes.
	graceEvery = 3 * time.Millisecond
	// graceLimit bounds a hold: a runtime that has not come to its cgroups by
	// then waits for something beside which 10 ms are little.
	graceLimit = 250 * time.Millisecond
)

// NewGrace makes one, which does nothing until Hold.
func NewGrace() *Grace {
	return &Grace{open: ownProcs(), idle: make(chan struct{}, 1)}
}

// Hold keeps the lock cheap until release is called, for a quarter of a second at
// most. It does not wait.
func (g *Grace) Hold() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.off {
		return func() {}
	}
	g.holds++
	g.until = time.Now().Add(graceLimit)
	g.begin()
	return sync.OnceFunc(g.release)
}

// Expect keeps the lock cheap for a while, since a Hold is likely to come.
func (g *Grace) Expect(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.off {
		return
	}
	if soon := time.Now().Add(d); soon.After(g.soon) {
		g.soon = soon
	}
	g.begin()
}

// begin starts run. Callers hold mu.
func (g *Grace) begin() {
	if !g.busy {
		g.busy = true
		g.wg.Go(g.run)
	}
}

// needed tells whether there is a hold, or one is expected. Callers hold mu.
func (g *Grace) needed() bool {
	now := time.Now()
	return !g.off && (g.holds > 0 && now.Before(g.until) || now.Before(g.soon))
}

func (g *Grace) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds--
	if g.holds == 0 {
		select {
		case g.idle <- struct{}{}:
		default:
		}
	}
}

// Close ends what Hold began and waits for it. Later holds have no effect.
func (g *Grace) Close() {
	g.mu.Lock()
	g.off = true
	select {
	case g.idle <- struct{}{}:
	default:
	}
	g.mu.Unlock()
	g.wg.Wait()
}

// run takes the lock again and again while it is needed.
func (g *Grace) run() {
	timer := time.NewTimer(graceEvery)
	defer timer.Stop()
	var m mover
	defer m.close()
	for {
		err := m.move(g.open)
		g.mu.Lock()
		g.off = g.off || err != nil
		if !g.needed() {
			g.busy = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		timer.Reset(graceEvery)
		select {
		case <-timer.C:
		case <-g.idle:
		}
	}
}

// mover moves this process to where it is.
type mover struct {
	procs  io.WriteCloser
	opened time.Time
}

// move does it. Where we are is looked up every now and then, so that we are not
// taken back from where somebody has moved us.
func (m *mover) move(open func() (io.WriteCloser, error)) (err error) {
	if m.procs != nil && time.Since(m.opened) > graceLimit {
		m.close()
	}
	if m.procs == nil {
		if m.procs, err = open(); err != nil {
			return err
		}
		m.opened = time.Now()
	}
	_, err = io.WriteString(m.procs, "0") // the process that writes
	return err
}

func (m *mover) close() {
	if m.procs != nil {
		_ = m.procs.Close() // what was written has taken effect
		m.procs = nil
	}
}

// graceOrder are the hierarchies by how little it matters where a process is in
// them; the lock is the same for all. "" is version 2.
var graceOrder = []string{
	"perf_event", "net_cls", "net_prio", "hugetlb", "rdma", "freezer", "devices", "pids", "blkio", "cpuset", "cpu", "memory", "",
}

// ownProcs returns what opens the cgroup.procs of the group that this process is
// in, in one hierarchy.
func ownProcs() func() (io.WriteCloser, error) {
	return func() (io.WriteCloser, error) {
		mounts, err := hierarchies()
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return nil, err
		}
		paths := parsePaths(data)
		for _, controller := range graceOrder {
			path, in := paths[controller]
			at, ok := mounts[controller]
			if dir, below := at.directory(path); in && ok && below {
				return os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
			}
		}
		return nil, ErrNone
	}
}
