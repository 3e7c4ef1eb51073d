package metadata

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

// driver is a snapshot driver, and which of its directories the rows don't tell
// of.
type driver struct {
	snapshots.Driver
	name   string
	rebase bool    // a layer without a parent can take one on at its commit
	remote *remote // instead of the driver: a snapshotter outside of the daemon

	// mu guards what follows.
	mu   sync.Mutex
	last snapshots.ID // highest number ever given out, or found at the start
	// flying are numbers given out whose row is not there yet; they are no
	// orphans.
	flying map[snapshots.ID]struct{}
	// leaving are numbers whose row is gone and whose directory goes.
	leaving map[snapshots.ID]struct{}
}

func newDriver(name string, d snapshots.Driver) *driver {
	return &driver{
		Driver: d, name: name, rebase: slices.Contains(d.Capabilities(), "rebase"),
		flying: map[snapshots.ID]struct{}{}, leaving: map[snapshots.ID]struct{}{},
	}
}

// takeID gives a number that was never used; land is called when its row is
// there, or nothing of it is left.
func (d *driver) takeID() (id snapshots.ID, land func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	id = d.last
	d.flying[id] = struct{}{}
	return id, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.flying, id)
	}
}

// seen has numbers that exist not be given out.
func (d *driver) seen(id snapshots.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = max(d.last, id)
}

// busy tells whether a directory without a row is no orphan.
func (d *driver) busy(id snapshots.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, flying := d.flying[id]
	_, leaving := d.leaving[id]
	return flying || leaving
}

// inherited are the labels that a driver gets to see.
func inherited(all map[string]string) map[string]string {
	var out map[string]string
	for key, value := range all {
		if strings.HasPrefix(key, labels.SnapshotInherited) {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

// directory is a snapshot's place within a driver.
type directory struct {
	driver *driver
	id     snapshots.ID
}

// maxRemovals bounds how many directories wait for their removal; who removes
// more waits.
const maxRemovals = 16 << 10

// remover removes directories whose row is gone, one after another, in a
// goroutine of its own.
type remover struct {
	log   *slog.Logger
	queue chan directory
	ctx   context.Context // ends when the database closes
	ended chan struct{}
	// mu guards failed.
	mu     sync.Mutex
	failed []directory // tried again after the next collection
}

func newRemover(ctx context.Context, log *slog.Logger) *remover {
	return &remover{log: log, queue: make(chan directory, maxRemovals), ctx: ctx, ended: make(chan struct{})}
}

// add has a directory removed some time later. What is still waiting when the
// database closes is swept at the next start.
func (r *remover) add(dir directory) {
	dir.driver.mu.Lock()
	dir.driver.leaving[dir.id] = struct{}{}
	dir.driver.mu.Unlock()
	select {
	case r.queue <- dir:
	case <-r.ctx.Done():
	}
}

// retry takes up again what could not be removed.
func (r *remover) retry() {
	r.mu.Lock()
	failed := r.failed
	r.failed = nil
	r.mu.Unlock()
	for _, dir := range failed {
		r.add(dir)
	}
}

func (r *remover) run() {
	defer close(r.ended)
	for {
		select {
		case dir := <-r.queue:
			r.remove(dir)
		case <-r.ctx.Done():
			return
		}
	}
}

func (r *remover) remove(dir directory) {
	if err := dir.driver.Remove(r.ctx, dir.id); err != nil {
		if r.ctx.Err() != nil {
			return
		}
		r.log.Warn("snapshot directory not removed, trying again later",
			slog.String("snapshotter", dir.driver.name), slog.Any("id", dir.id), slog.Any("error", err))
		r.mu.Lock()
		defer r.mu.Unlock()
		r.failed = append(r.failed, dir)
		return
	}
	dir.driver.mu.Lock()
	defer dir.driver.mu.Unlock()
	delete(dir.driver.leaving, dir.id)
}
