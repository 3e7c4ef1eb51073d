package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// Tasks is the table of all tasks of all namespaces.
type Tasks struct {
	cfg     Config
	bundles bundles
	bootID  string
	null    *os.File // standard input of shims
	bygone  bygone
	shims   foundShims
	pods    pods
	dog     watchdog
	grace   *cgroup.Grace // for runtimes that will move processes

	// ctx ends with Close; wg has everything that was started.
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	// adoptions bounds how many shims are being judged at once.
	adoptions chan struct{}

	// mu guards what follows. No I/O is done under it.
	mu         sync.Mutex
	tasks      map[name]*task
	boxes      map[name]*box // the sandboxes
	leftovers  []string      // found by Open, removed by Run
	late       []late        // found by Open, published by Run
	foundBoxes []*box        // found by Open, attended to by Run
	strays     []*conn       // found by Open, sent away by Run
	found      []*task       // found by Open, adopted by Run
	closed     bool
}

// maxAdoptions bounds how many shims are asked at once after a restart,
// maxReaders how many bundles are read at once.
const (
	maxAdoptions = 32
	maxReaders   = 8
)

// Open makes the directories, tells a reboot from a restart, and lists every
// bundle into the table by its records alone. It starts nothing.
func Open(c Config) (*Tasks, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	t := &Tasks{
		cfg: c, bundles: bundles(filepath.Join(c.State, bundlesDir)),
		adoptions: make(chan struct{}, maxAdoptions),
		tasks:     map[name]*task{},
		boxes:     map[name]*box{},
		dog:       watchdog{round: newLane()},
		grace:     cgroup.NewGrace(),
	}
	if err := t.directories(); err != nil {
		return nil, fmt.Errorf("open runtime: %w", err)
	}
	var err error
	if t.bootID, err = c.BootID(); err != nil {
		return nil, fmt.Errorf("open runtime: %w", err)
	}
	if t.null, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0); err != nil {
		return nil, fmt.Errorf("open runtime: %w", err)
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	if err := t.load(); err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("open runtime: %w", err)
	}
	return t, nil
}

func (t *Tasks) directories() error {
	for _, d := range []struct {
		path string
		perm os.FileMode
	}{
		{t.cfg.State, 0o711},
		{string(t.bundles), 0o711},
		{filepath.Join(t.cfg.State, socketsDir), 0o700},
		{filepath.Join(t.cfg.State, ociDir), 0o711},
	} {
		if err := os.MkdirAll(d.path, d.perm); err != nil {
			return err
		}
	}
	return nil
}

// load lists the bundles into the table.
func (t *Tasks) load() error {
	before, err := os.ReadFile(filepath.Join(t.cfg.State, bootIDFile))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	last := strings.TrimSpace(string(before))
	rebooted := last != "" && last != t.bootID
	found, leftovers, err := t.bundles.list(t.cfg.Log)
	if err != nil {
		return err
	}
	if rebooted {
		t.cfg.Log.Info("the machine has been booted since; every task of before is gone", "tasks", len(found))
		if err := errors.Join(removeTree(filepath.Join(t.cfg.State, ociDir)), t.directories()); err != nil {
			return err
		}
	}
	t.leftovers = leftovers
	t.late = t.findLate(leftovers)
	read := make([]records, len(found))
	parallel(len(found), maxReaders, func(i int) { read[i] = readRecords(t.bundles.path(found[i].ns, found[i].id)) })
	for i, n := range found {
		k := t.newTask(n.ns, n.id, adopting)
		k.reason = "its shim was not asked yet"
		r := read[i]
		if r.intent != nil {
			k.settle(t.socketOf(*r.intent))
		}
		if t.ofEarlierBoot(r, rebooted) {
			err := t.discard(k)
			if err == nil {
				k.leave()
				continue
			}
			t.cfg.Log.Warn("bundle of an earlier boot not removed yet", "path", k.dir, "error", err)
		}
		k.take(r)
		t.tasks[n] = k
		t.found = append(t.found, k)
	}
	if err := t.loadBoxes(); err != nil {
		return err
	}
	if err := t.findStrays(); err != nil {
		return err
	}
	t.sweepImages()
	if last == t.bootID {
		return nil
	}
	return durable.WriteVolatile("runtime.bootid", filepath.Join(t.cfg.State, bootIDFile), []byte(t.bootID+"\n"), 0o644)
}

// discard removes a bundle of an earlier boot, and what the OCI runtime would
// take for a container of that name.
func (t *Tasks) discard(k *task) error {
	if r, err := readRecord[record.Runtime](k.dir, record.RuntimeFile); err == nil && r != nil {
		state := filepath.Join(r.Root, k.id)
		if _, err := os.Lstat(filepath.Join(state, "state.json")); err == nil {
			if err := removeTree(state); err != nil {
				return err
			}
		}
	}
	return t.clear(k)
}

// Run adopts the tasks that Open found, in parallel, and supervises all tasks
// until ctx ends. Then it closes t. Containers run on.
func (t *Tasks) Run(ctx context.Context) error {
	t.mu.Lock()
	leftovers, strays, found, late, boxes := t.leftovers, t.strays, t.found, t.late, t.foundBoxes
	t.leftovers, t.strays, t.found, t.late, t.foundBoxes = nil, nil, nil, nil, nil
	if t.closed {
		strays = nil
	} else {
		t.wg.Go(func() {
			t.publishLate(late)
			sweep(t.cfg.Log, leftovers...)
		})
		t.wg.Go(t.patrol)
		if t.cfg.Reap {
			t.wg.Go(t.reapStrays)
		}
		for _, c := range strays {
			t.wg.Go(func() { t.dismissStray(c) })
		}
		for _, b := range boxes {
			t.wg.Go(func() { t.attendBox(b) })
		}
		for _, k := range found {
			t.wg.Go(func() { t.supervise(k) })
		}
	}
	t.mu.Unlock()
	<-ctx.Done()
	return t.Close()
}

// Settle waits until the shims of deleted tasks have left and their last events
// are published, or ctx ends. What is not done then the next daemon does.
func (t *Tasks) Settle(ctx context.Context) {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.tasks))
	t.mu.Unlock()
	for _, k := range all {
		if k.view().stand != leaving {
			continue
		}
		select {
		case <-k.ctx.Done():
		case <-ctx.Done():
			return
		}
	}
}

// Close lets go of every shim, without a word to it, and waits for what Run and
// the calls have started.
func (t *Tasks) Close() error {
	t.mu.Lock()
	closed := t.closed
	t.closed = true
	all := slices.Collect(maps.Values(t.tasks))
	for _, b := range t.boxes {
		all = append(all, b.task)
	}
	strays := t.strays
	t.strays = nil
	t.mu.Unlock()
	t.stop()
	for _, c := range strays {
		c.close()
	}
	if !closed {
		for _, k := range all {
			k.close()
		}
	}
	t.wg.Wait()
	t.grace.Close()
	if closed {
		return nil
	}
	return t.null.Close()
}

// begin counts a call that must end before Close returns.
func (t *Tasks) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("the daemon is stopping: %w", errdefs.ErrUnavailable)
	}
	t.wg.Add(1)
	return nil
}

// find gives a task of the table, or nil.
func (t *Tasks) find(ns, id string) *task {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tasks[name{ns, id}]
}

// lookup gives a task that calls may see.
func (t *Tasks) lookup(ns, id string) (*task, error) {
	if err := names.Namespace(ns); err != nil {
		return nil, err
	}
	k := t.find(ns, id)
	if k == nil || k.view().stand.hidden() {
		return nil, notFound(id)
	}
	return k, nil
}

// list gives the tasks of a namespace, or of all ("") in order of namespace and
// id, except those being created
// and those already deleted.
func (t *Tasks) list(ns string) []*task {
	t.mu.Lock()
	found := make([]*task, 0, len(t.tasks))
	for n, k := range t.tasks {
		if ns == "" || n.ns == ns {
			found = append(found, k)
		}
	}
	t.mu.Unlock()
	found = slices.DeleteFunc(found, func(k *task) bool { return k.view().stand.hidden() })
	slices.SortFunc(found, func(a, b *task) int {
		if c := strings.Compare(a.ns, b.ns); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return found
}

// reserve enters a task that is being created.
func (t *Tasks) reserve(in record.Intent) (*task, error) {
	ns, id := in.Namespace, in.ID
	k := t.newTask(ns, id, creating)
	k.intent = in
	k.settle(t.socketOf(in))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tasks[name{ns, id}] != nil {
		k.leave()
		return nil, fmt.Errorf("task %q: %w", id, errdefs.ErrAlreadyExists)
	}
	t.tasks[name{ns, id}] = k
	return k, nil
}

// drop takes a task out of the table. Who still waits for it gets NotFound.
func (t *Tasks) drop(k *task) {
	k.release()
	k.mu.Lock()
	pid, seen := k.init.started.PID, k.seen
	k.mu.Unlock()
	t.bygone.add(k.ns, k.id, pid, seen)
	t.mu.Lock()
	if t.tasks[name{k.ns, k.id}] == k {
		delete(t.tasks, name{k.ns, k.id})
	}
	t.mu.Unlock()
	k.close()
}

// Supervision is what the daemon knows of one task, for people who look into a
// running daemon.
type Supervision struct {
	Namespace string
	ID        string
	Verdict   string // "connected", "adopting", "shim-lost", "stopped" or "quarantined"
	Reason    string // why, in words; empty for "connected"
	ShimPID   uint32
	PID       uint32

	ExitReason string // of a task that has ended: record.Exit.Reason
	OOMKills   uint64 // of a task that has ended: record.Exit.OOMKills
}

// Report lists every task with what supervision knows of it, in order of
// namespace and id.
func (t *Tasks) Report() []Supervision {
	all := t.list("")
	report := make([]Supervision, 0, len(all))
	for _, k := range all {
		v := k.view()
		s := Supervision{
			Namespace: k.ns, ID: k.id, Verdict: v.stand.String(), Reason: v.reason,
			ShimPID: uint32(v.shimPID), PID: uint32(v.init.PID),
		}
		if v.exit != nil {
			s.ExitReason, s.OOMKills = v.exit.Reason, v.exit.OOMKills
		}
		report = append(report, s)
	}
	return report
}
