package metadata

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// bytesPatience is how long a collection waits for the bytes of what it removed
// to be gone as well. Thousands of them may take longer on a disk that others
// flush meanwhile; then they go after its end.
const bytesPatience = 250 * time.Millisecond

// unlinker removes the bytes of blobs that have lost their rows, in a goroutine
// of its own.
type unlinker struct {
	db    *DB
	wake  chan struct{}
	ended chan struct{} // closed when run returns
	// mu guards next.
	mu   sync.Mutex
	next chan struct{} // closed when the pass that has not begun yet is over; nil if nobody waits
}

func newUnlinker(db *DB) *unlinker {
	return &unlinker{db: db, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// start has the bytes removed that have no row by now. What it gives closes when
// that is done, as far as it can be.
func (u *unlinker) start() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.next == nil {
		u.next = make(chan struct{})
	}
	select {
	case u.wake <- struct{}{}:
	default:
	}
	return u.next
}

func (u *unlinker) run() {
	defer close(u.ended)
	for {
		select {
		case <-u.wake:
			u.pass()
		case <-u.db.ctx.Done():
			return // the rest is swept at the next start
		}
	}
}

func (u *unlinker) pass() {
	u.mu.Lock()
	over := u.next
	u.next = nil
	u.mu.Unlock()
	if over != nil {
		defer close(over)
	}
	if err := u.db.removeUnnamed(u.db.ctx); err != nil && u.db.ctx.Err() == nil {
		u.db.log.Warn("content not removed, trying again later", slog.Any("error", err))
	}
}

// awaitBytes waits until the bytes of what lost its row are gone, for a while.
func (db *DB) awaitBytes(ctx context.Context) {
	timer := time.NewTimer(bytesPatience)
	defer timer.Stop()
	select {
	case <-db.unlinker.start():
	case <-timer.C:
	case <-ctx.Done():
	case <-db.unlinker.ended:
	}
}

// dispose has what rows named go from disk. After a failed transaction each is
// looked up: it may have taken effect all the same.
func (c *collection) dispose(ctx context.Context, gone removed, failed error) {
	for _, d := range gone.content {
		c.db.unnamed.add(d)
	}
	if len(gone.content) > 0 {
		c.db.unlinker.start()
	}
	for _, s := range gone.snapshots {
		if failed == nil || !c.db.hasDirectory(s.snapshotter, s.id) {
			c.db.removeDirectory(s.snapshotter, s.id)
		}
	}
	for _, id := range gone.mounts {
		if c.db.activations.place == nil || failed != nil && c.db.hasActivation(id) {
			continue
		}
		if err := c.db.unmount(ctx, id); err != nil {
			c.db.log.Warn("mounts of a collected activation stay, trying again later", slog.Any("error", err))
		}
	}
	for _, i := range gone.ingests {
		if failed != nil && c.db.hasIngest(i.ns, i.ref, i.backend) {
			continue
		}
		if err := c.db.discard(ctx, i.backend); err != nil {
			c.db.log.Warn("ingest not removed, trying again later", slog.String("ref", i.backend), slog.Any("error", err))
		}
	}
}
