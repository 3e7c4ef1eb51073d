package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/snapshots"
)

// Scope is on whose behalf a store works: a namespace, and the lease that new
// objects join; no lease if empty. A lease that does not exist is NotFound for
// every call that would join it.
type Scope struct{ Namespace, Lease string }

// Options say where the database is and what it orders.
type Options struct {
	Path    string
	Content content.Store
	Drivers map[string]snapshots.Driver // by name of the snapshotter
	Remotes map[string]snapshots.Remote // those outside of the daemon, with other names
	// Mounts is where activations are mounted; nil: there are none. BootID tells
	// the boot with which they end.
	Mounts   *activate.Place
	BootID   string
	Isolated bool // namespaces don't share content

	// Publish, if set, is called after the commit that made an event true, in
	// the order of commits, and before the caller whose change it tells gets
	// its answer. It must not block for long, nor call the database.
	Publish func(ctx context.Context, namespace, topic string, event proto.Message)
	Now     func() time.Time // default: time.Now
	Log     *slog.Logger     // default: none
}

// DB is the open database. All methods are safe for concurrent use.
type DB struct {
	options Options
	log     *slog.Logger
	bolt    *bolt.DB
	file    *os.File // that of bolt, which closes it
	content content.Store
	drivers map[string]*driver
	remotes map[string]*driver // whose snapshots are not directories of ours

	ctx         context.Context // ends when the database closes
	cancel      context.CancelFunc
	committer   *committer
	remover     *remover
	unlinker    *unlinker
	ingests     *ingests
	unnamed     unnamed
	activations activations
	lanes       lanes         // by digest
	collecting  chan struct{} // full while a collection runs

	compactMin int64  // bytes
	sweepRows  int    // removed in one write transaction at most
	beforePart func() // nil but in tests: called before each of these transactions

	onDelete atomic.Pointer[func()]
	onExpire atomic.Pointer[func(time.Time)]

	closing sync.Once
	closed  error
}

func newDB(o Options) *DB {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	db := &DB{
		options: o, log: o.Log, content: o.Content, drivers: map[string]*driver{}, remotes: map[string]*driver{},
		ingests: newIngests(), collecting: make(chan struct{}, 1), sweepRows: defaultSweepRows,
		compactMin: defaultCompactMin,
	}
	for name, d := range o.Drivers {
		db.drivers[name] = newDriver(name, d)
	}
	db.activations.place, db.activations.bootID = o.Mounts, o.BootID
	for name, r := range o.Remotes {
		db.remotes[name] = newRemote(db, name, r)
	}
	db.ctx, db.cancel = context.WithCancel(context.Background())
	db.committer = newCommitter(db)
	db.remover = newRemover(db.ctx, db.log)
	db.unlinker = newUnlinker(db)
	return db
}

// Close waits for what was begun: functions accepted by Update, a collection, a
// directory that is being removed. Later calls fail with Unavailable. Writers
// have to be closed before.
func (db *DB) Close() error {
	db.closing.Do(func() {
		db.cancel()
		db.collecting <- struct{}{} // never freed: no collection after this one
		close(db.committer.quit)
		<-db.committer.stopped
		<-db.remover.ended
		<-db.unlinker.ended
		for _, d := range db.remotes {
			<-d.remote.ended
		}
		db.closed = db.protect("close", db.bolt.Close) // waits for readers
	})
	return db.closed
}

// View runs fn on the database as it is. fn must not keep what it reads beyond
// its return, nor call Update.
func (db *DB) View(fn func(*Tx) error) error {
	var btx *bolt.Tx
	err := db.protect("begin to read", func() (err error) {
		btx, err = db.bolt.Begin(false)
		return err
	})
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return errClosed
	}
	if err != nil {
		return err
	}
	return db.view(btx, fn)
}

// view runs fn on a read transaction and ends that.
func (db *DB) view(btx *bolt.Tx, fn func(*Tx) error) error {
	err := db.protect("read", func() error { return fn(&Tx{bolt: btx, now: db.options.Now()}) })
	if end := db.protect("end reading", btx.Rollback); end != nil {
		return errors.Join(err, fmt.Errorf("end reading: %w", end))
	}
	return err
}

// Update runs fn in a transaction that is on disk when it returns without an
// error. fn shares the transaction with others that wait at the same time. It
// may run more than once, and must do nothing but read and write rows. If it
// fails nothing of it stays. A ctx that ends while fn waits for its turn
// withdraws it.
//
// After an error of the commit itself, which is of no kind, the change may have
// taken effect or not.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	return db.committer.do(&job{ctx: ctx, fn: fn})
}

// OnDelete sets what is called after a commit that may have made garbage. It
// must not block, nor call the database.
func (db *DB) OnDelete(hook func()) { db.onDelete.Store(&hook) }

// OnExpire sets what is called after a commit of something that ends by itself,
// with the time when it does. It must not block, nor call the database.
func (db *DB) OnExpire(hook func(at time.Time)) { db.onExpire.Store(&hook) }

// mayHaveGarbage tells who decides about collections.
func (db *DB) mayHaveGarbage() {
	if hook := db.onDelete.Load(); hook != nil {
		(*hook)()
	}
}

func (db *DB) publish(e event) {
	if db.options.Publish == nil {
		return
	}
	err := db.protect("publish", func() error {
		db.options.Publish(context.WithoutCancel(db.ctx), e.namespace, e.topic, e.message)
		return nil
	})
	if err != nil {
		db.log.Error("event not published", slog.String("topic", e.topic), slog.Any("error", err))
	}
}
