package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/snapshots"
)

const (
	// DB.sweepRows bounds one write transaction of a sweep, sweepTime does while a
	// writer waits, and idleSweepTime while none does.
	defaultSweepRows = 1024
	sweepTime        = time.Millisecond
	idleSweepTime    = 4 * time.Millisecond
	// catchUpRows is how many changed rows a sweep looks at within its write
	// transaction at most. What was changed before is looked at, and followed, on
	// a read transaction.
	catchUpRows = 64
)

// Report tells what a collection did. The counts are of rows removed.
type Report struct {
	Content, Snapshots, Images, Leases, Ingests int64

	Started      time.Time
	Duration     time.Duration
	LongestStall time.Duration // longest time that it kept writers waiting
	NextExpiry   time.Time     // of the lease, image or ingest that ends next; zero if none does
	More         bool          // a writer touched what was about to go: another run may find garbage
}

// collection is one run of Collect.
type collection struct {
	db     *DB
	marker *marker
	report Report

	candidates []node // unmarked when the mark ended, what refers before what is referred to
	later      []node // snapshots that had children when their turn came
	rows       int    // removed in one transaction at most
}

// removed is what one part of the sweep took from the rows, and what is to go
// from disk.
type removed struct {
	rows      [kindContent + 1]int64
	content   []digest.Digest
	snapshots []struct {
		snapshotter string
		id          snapshots.ID
	}
	ingests []struct{ ns, ref, backend string }
	mounts  []uint64
}

// Collect removes all rows that nothing keeps alive, and has their bytes and
// directories removed (contract, section 7): it waits for the bytes, but not for
// those of thousands of blobs, nor for directories. Writers go on meanwhile; what
// they make or refer to is spared. Runs don't overlap: a second one waits.
func (db *DB) Collect(ctx context.Context) (Report, error) {
	select {
	case db.collecting <- struct{}{}:
		defer func() { <-db.collecting }()
	case <-ctx.Done():
		return Report{}, ctx.Err()
	case <-db.ctx.Done():
		return Report{}, errClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(db.ctx, cancel)()
	c := &collection{db: db, report: Report{Started: db.options.Now()}, rows: db.sweepRows}
	start := time.Now()
	err := c.run(ctx)
	c.report.Duration = time.Since(start)
	if err != nil {
		return c.report, fmt.Errorf("collect: %w", err)
	}
	return c.report, nil
}

func (c *collection) run(ctx context.Context) error {
	c.marker = newMarker(c.report.Started, c.db.ingests.isHeld)
	c.db.remover.retry()
	c.db.retryDiscards(ctx)
	c.db.retryMounts(ctx)
	if err := c.mark(ctx); err != nil {
		return errors.Join(err, c.end())
	}
	err := c.sweep(ctx)
	if err = errors.Join(err, c.end()); err != nil {
		return err
	}
	c.report.NextExpiry = c.marker.next
	c.db.awaitBytes(ctx)
	return nil
}

// between runs fn in the committer, between two transactions.
func (c *collection) between(ctx context.Context, fn func()) error {
	j := &job{ctx: ctx, plain: fn}
	err := c.db.committer.do(j)
	if err == nil {
		c.report.LongestStall = max(c.report.LongestStall, j.took)
	}
	return err
}

// read runs fn on a read transaction that is begun in the committer, right after
// begun: nothing that a writer changes falls between the two.
func (c *collection) read(ctx context.Context, begun func(), fn func(*Tx) error) error {
	var (
		btx   *bolt.Tx
		begin error
	)
	err := c.between(ctx, func() {
		begun()
		btx, begin = c.db.bolt.Begin(false)
	})
	if err = errors.Join(err, begin); err != nil {
		return err
	}
	return c.db.view(btx, fn)
}

// mark raises the barrier and finds what is alive.
func (c *collection) mark(ctx context.Context) error {
	raise := func() { c.db.committer.barrier = newBarrier() }
	return c.read(ctx, raise, func(tx *Tx) error {
		if err := c.marker.roots(ctx, tx); err != nil {
			return err
		}
		if err := c.marker.follow(ctx, tx); err != nil {
			return err
		}
		return c.choose(ctx, tx)
	})
}

// end takes down the barrier.
func (c *collection) end() error {
	err := c.between(c.db.ctx, func() { c.db.committer.barrier = nil })
	if errors.Is(err, errdefs.ErrUnavailable) || errors.Is(err, context.Canceled) {
		return nil // the database closes
	}
	return err
}

// sweep removes the candidates, part by part.
func (c *collection) sweep(ctx context.Context) error {
	for retried := false; ; retried = true {
		before := len(c.candidates)
		for len(c.candidates) > 0 {
			if c.db.beforePart != nil {
				c.db.beforePart()
			}
			if err := c.catchUp(ctx); err != nil {
				return err
			}
			err := c.sweepPart(ctx)
			if isFull(err) && c.rows > 1 {
				c.rows = 1 // takes the fewest pages
				continue
			}
			if err != nil {
				return err
			}
		}
		if len(c.later) == 0 || retried && len(c.later) >= before {
			return nil
		}
		c.candidates, c.later = c.later, nil
	}
}

// catchUp marks from what writers changed, on read transactions, until little
// is left for the next write transaction.
func (c *collection) catchUp(ctx context.Context) error {
	for least := 0; ; least = catchUpRows {
		var touched map[node]struct{}
		take := func() {
			if b := c.db.committer.barrier; len(b.touched) > least {
				touched = b.take()
			}
		}
		err := c.read(ctx, take, func(tx *Tx) error { return c.marker.changed(ctx, tx, touched) })
		if err != nil || touched == nil {
			return err
		}
	}
}

// sweepPart removes some candidates in one write transaction, and then what
// they named on disk.
func (c *collection) sweepPart(ctx context.Context) error {
	var (
		gone  removed
		done  int
		later []node
		more  bool
	)
	j := &job{ctx: ctx, sweep: true, fn: func(tx *Tx) (err error) {
		start := time.Now()
		gone, done, later, more = removed{}, 0, nil, false
		if err := c.marker.changed(ctx, tx, tx.barrier.take()); err != nil {
			return err
		}
		for done < min(c.rows, len(c.candidates)) && (done%8 != 0 || done == 0 || c.mayGoOn(start)) {
			n := c.candidates[done]
			done++
			if c.marker.marks[n] != unmarked {
				more = true
				continue
			}
			err := tx.sweep(n, c.db.ingests.isHeld, &gone)
			if errors.Is(err, errdefs.ErrFailedPrecondition) {
				later = append(later, n)
			} else if err != nil {
				return err
			}
		}
		tx.garbage = false // what a removed row referred to is a candidate already
		return nil
	}}
	c.marker.pace.hurry = true
	err := c.db.committer.do(j)
	c.marker.pace.hurry = false
	c.report.LongestStall = max(c.report.LongestStall, j.took)
	c.dispose(ctx, gone, err)
	if err != nil {
		return err
	}
	c.count(gone)
	c.candidates = c.candidates[done:]
	c.later = append(c.later, later...)
	c.report.More = c.report.More || more
	return nil
}

// mayGoOn tells whether a transaction that began then may remove more rows.
func (c *collection) mayGoOn(start time.Time) bool {
	took := time.Since(start)
	return took < sweepTime || took < idleSweepTime && len(c.db.committer.jobs) == 0
}

// sweep removes the row of one candidate. FailedPrecondition: a snapshot has
// children that are still to go.
func (tx *Tx) sweep(n node, held func(ns, ref string) bool, gone *removed) error {
	if tx.row(n) == nil {
		return nil
	}
	switch n.kind {
	case kindLease:
		if err := tx.deleteLease(n.ns, n.key); err != nil {
			return err
		}
	case kindImage:
		if err := imageTable.Delete(tx, n.ns, n.key); err != nil {
			return err
		}
		tx.publish(n.ns, "/images/delete", &images.ImageDelete{Name: n.key})
	case kindIngest:
		if held(n.ns, n.key) {
			return nil
		}
		row, err := ingestTable.Get(tx, n.ns, n.key)
		if err != nil {
			return err
		}
		if err := ingestTable.Delete(tx, n.ns, n.key); err != nil {
			return err
		}
		gone.ingests = append(gone.ingests, struct{ ns, ref, backend string }{n.ns, n.key, row.BackendRef})
	case kindMount:
		row, err := activationTable.Get(tx, n.ns, n.key)
		if err != nil {
			return err
		}
		if err := activationTable.Delete(tx, n.ns, n.key); err != nil {
			return err
		}
		gone.mounts = append(gone.mounts, row.Id)
	case kindSnapshot:
		snapshotter, key, _ := cut(n.key)
		row, err := tx.removeSnapshot(n.ns, snapshotter, key)
		if err != nil {
			return err
		}
		gone.snapshots = append(gone.snapshots, struct {
			snapshotter string
			id          snapshots.ID
		}{snapshotter, row.ID})
	case kindContent:
		if err := blobTable.Delete(tx, n.ns, n.key); err != nil {
			return err
		}
		gone.content = append(gone.content, digest.Digest(n.key))
	}
	gone.rows[n.kind]++
	return nil
}

func (c *collection) count(gone removed) {
	c.report.Content += gone.rows[kindContent]
	c.report.Snapshots += gone.rows[kindSnapshot]
	c.report.Images += gone.rows[kindImage]
	c.report.Leases += gone.rows[kindLease]
	c.report.Ingests += gone.rows[kindIngest]
}
