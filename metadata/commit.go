package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/berthd/berth/internal/fault"
)

const (
	// maxBatch bounds how many functions share a transaction.
	maxBatch = 256
	// patienceShare and maxPatience bound how long callers that came together
	// are waited for: a part of what a commit takes.
	patienceShare = 8
	maxPatience   = 500 * time.Microsecond
	// commitPoint is the fault point around the commit of a transaction.
	commitPoint = "metadata.commit"
)

var errClosed = fmt.Errorf("metadata: the database is closed: %w", errdefs.ErrUnavailable)

// job is one function that waits for the committer, or runs in it.
type job struct {
	ctx   context.Context
	fn    func(*Tx) error
	sweep bool   // the part of a collection: runs behind those that it shares with
	plain func() // instead of fn: run between transactions, without one

	taken  atomic.Bool // by the committer to run it, or by its caller to give up
	answer chan error
	err    error
	tx     *Tx
	// took is how long the committer was busy with this job: all of a
	// transaction that it shared with no other.
	took time.Duration
}

// committer runs the functions of Update, one transaction at a time.
type committer struct {
	db      *DB
	jobs    chan *job
	quit    chan struct{} // closed by Close
	stopped chan struct{} // closed when the goroutine has ended
	// barrier collects the rows written while a collection runs; nil otherwise.
	// Only the committer's goroutine touches it.
	barrier *barrier
	// expected is how many functions shared the last transactions, and patience
	// how long to wait for as many.
	expected int
	patience time.Duration
	reserve  *reserve
	// broken is set when it is unknown whether what was written is on disk.
	broken error
}

func newCommitter(db *DB) *committer {
	return &committer{
		db: db, jobs: make(chan *job, maxBatch), quit: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// do has a job run and gives its answer. A job that is not begun when its
// context ends never runs.
func (c *committer) do(j *job) error {
	j.answer = make(chan error, 1)
	select {
	case <-c.quit:
		return errClosed
	default:
	}
	select {
	case c.jobs <- j:
	case <-j.ctx.Done():
		return j.ctx.Err()
	case <-c.stopped:
		return errClosed
	}
	select {
	case err := <-j.answer:
		return err
	case <-j.ctx.Done():
		if j.taken.CompareAndSwap(false, true) {
			return j.ctx.Err()
		}
	case <-c.stopped:
		if j.taken.CompareAndSwap(false, true) {
			return errClosed
		}
	}
	return <-j.answer
}

// run is the committer's goroutine.
func (c *committer) run() {
	defer close(c.stopped)
	debug.SetPanicOnFault(true) // a damaged file may point outside its mapping
	for {
		select {
		case j := <-c.jobs:
			c.batch(j)
		case <-c.quit:
			for { // what was accepted is still done
				select {
				case j := <-c.jobs:
					c.batch(j)
				default:
					return
				}
			}
		}
	}
}

// gather takes first and all that wait behind it. Callers that had their answer
// from the last transaction are likely to come again at once; if there were
// several, they are waited for a little, or every other transaction would be
// made of the one that came first.
func (c *committer) gather(first *job) (shared, alone []*job) {
	var patience <-chan time.Time
	for j := first; j != nil; {
		if j.taken.CompareAndSwap(false, true) {
			if j.plain != nil {
				alone = append(alone, j)
			} else {
				shared = append(shared, j)
			}
		}
		count := len(shared) + len(alone)
		if count >= maxBatch {
			break
		}
		select {
		case j = <-c.jobs:
			continue
		default:
		}
		if count >= c.expected || count == 0 {
			break
		}
		if patience == nil {
			timer := time.NewTimer(c.patience)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case j = <-c.jobs:
		case <-patience:
			j = nil
		}
	}
	c.expected = max(len(shared), c.expected*3/4)
	return shared, alone
}

// batch runs first and all that wait behind it.
func (c *committer) batch(first *job) {
	shared, alone := c.gather(first)
	shared = arrange(shared)
	// A function that fails after it wrote spoils the transaction: the others
	// run again without it, and it runs again on its own, so that its answer
	// rests on nothing that was rolled back.
	for len(shared) > 0 {
		bad := c.attempt(shared)
		if bad < 0 {
			break
		}
		alone = append(alone, shared[bad])
		shared = append(shared[:bad:bad], shared[bad+1:]...)
		if last := len(shared) - 1; last > 0 && shared[last].sweep {
			// It need not be done over for others' failures.
			alone, shared = append(alone, shared[last]), shared[:last]
		}
	}
	for _, j := range alone {
		start := time.Now()
		if j.plain != nil {
			err := c.db.protect("between transactions", func() error { j.plain(); return nil })
			j.took = time.Since(start)
			j.answer <- err
			continue
		}
		c.attempt([]*job{j})
	}
}

// arrange puts a sweep behind what it shares a transaction with, so that it sees
// what the others wrote.
func arrange(jobs []*job) []*job {
	for i, j := range jobs {
		if j.sweep {
			return append(append(jobs[:i:i], jobs[i+1:]...), j)
		}
	}
	return jobs
}

// attempt runs the jobs in one transaction and answers them all. If one of
// several fails after it wrote, it answers none and gives the index of that one.
func (c *committer) attempt(jobs []*job) int {
	start := time.Now()
	btx, err := c.begin()
	if err != nil {
		return c.answer(jobs, start, err)
	}
	wrote := false
	for i, j := range jobs {
		j.tx = &Tx{bolt: btx, now: c.db.options.Now()}
		if c.barrier != nil && j.sweep {
			j.tx.barrier = c.barrier
		}
		began := time.Now()
		j.err = c.db.protect("transaction", func() error { return j.fn(j.tx) })
		if j.err == nil && j.tx.wrote {
			j.err = c.reserve.refuse(j.tx.grew)
		}
		j.took = time.Since(began)
		if j.err != nil && j.tx.wrote {
			c.rollback(btx)
			if len(jobs) > 1 {
				return i
			}
			return c.answer(jobs, start, nil)
		}
		if j.err == nil && c.barrier != nil {
			c.barrier.add(j.tx.touched)
		}
		wrote = wrote || j.tx.wrote
	}
	if !wrote {
		c.rollback(btx)
		return c.answer(jobs, start, nil)
	}
	flushing := time.Now()
	took, err := c.commit(btx)
	c.patience = min(time.Since(flushing)/patienceShare, maxPatience)
	if took {
		c.effects(jobs)
	}
	return c.answer(jobs, start, err)
}

func (c *committer) answer(jobs []*job, start time.Time, err error) int {
	for _, j := range jobs {
		if len(jobs) == 1 {
			j.took = time.Since(start)
		}
		if err != nil {
			j.err = err // what a function said rested on a transaction that is none
		}
		j.answer <- j.err
	}
	return -1
}

func (c *committer) begin() (btx *bolt.Tx, err error) {
	if c.broken != nil {
		return nil, c.broken
	}
	err = c.db.protect("begin a transaction", func() (err error) {
		if btx, err = c.db.bolt.Begin(true); err == nil {
			c.reserve.keep(btx.Size())
		}
		return err
	})
	return btx, err
}

// rollback ends a transaction of which nothing must stay. It is no error that
// it has ended already.
func (c *committer) rollback(btx *bolt.Tx) {
	err := c.db.protect("roll back a transaction", btx.Rollback)
	if err != nil && !errors.Is(err, berrors.ErrTxClosed) {
		c.fail(err)
	}
}

// commit makes a transaction durable, and tells whether it took effect, which
// it may have done in spite of an error.
func (c *committer) commit(btx *bolt.Tx) (took bool, err error) {
	if err := fault.Before(commitPoint); err != nil {
		c.rollback(btx)
		return false, err
	}
	id := btx.ID()
	if err := c.db.protect("commit", btx.Commit); err != nil {
		c.rollback(btx)
		if took = c.seen(id); took {
			c.fail(err)
		}
		return took, err
	}
	return true, fault.After(commitPoint)
}

// seen tells whether readers see the transaction with this number.
func (c *committer) seen(id int) bool {
	last := id
	err := c.db.protect("look for a transaction", func() error {
		btx, err := c.db.bolt.Begin(false)
		if err != nil {
			return err
		}
		last = btx.ID()
		return btx.Rollback()
	})
	return err != nil || last >= id
}

// fail refuses all further writes: memory and disk may disagree from here on,
// and only a new start reads the disk anew.
func (c *committer) fail(err error) {
	c.broken = fmt.Errorf("metadata: the database takes no more changes until berthd is started again, because an earlier one failed half-way: %w: %w", err, errdefs.ErrUnavailable)
	c.db.log.Error("database failed, refusing changes", slog.Any("error", err))
}

// effects does what the functions of a committed transaction asked for.
func (c *committer) effects(jobs []*job) {
	garbage := false
	var expires time.Time
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		for _, e := range j.tx.events {
			c.db.publish(e)
		}
		garbage = garbage || j.tx.garbage
		if at := j.tx.expires; !at.IsZero() && (expires.IsZero() || at.Before(expires)) {
			expires = at
		}
	}
	if hook := c.db.onDelete.Load(); garbage && hook != nil {
		(*hook)()
	}
	if hook := c.db.onExpire.Load(); !expires.IsZero() && hook != nil {
		(*hook)(expires)
	}
}

// protect runs fn and turns a panic, also one from touching memory that a
// damaged file does not back, into an error.
func (db *DB) protect(what string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db.log.Error("panic in the database", slog.String("doing", what), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("metadata: %s: panic: %v: %w", what, p, errdefs.ErrInternal)
		}
	}()
	return fn()
}
