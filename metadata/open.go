package metadata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/metadata/boltfile"
	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/snapshots"
)

const (
	// SchemaVersion is that of the databases this program writes.
	SchemaVersion = 1

	schemaKey = "schema"
	// lockTimeout is how long another process may still have the file open.
	lockTimeout = 2 * time.Second
	lockRetry   = 50 * time.Millisecond
	// mapSize is the address space set aside for the file. Only a larger file
	// is mapped anew, which has to wait for all readers.
	mapSize = 256 << 20
	// growth is how much a full file grows at once.
	growth = 1 << 20
)

// Open opens the database, which it makes if need be. FailedPrecondition: a
// newer program wrote it. Unavailable: another process has it open. DataLoss:
// it is damaged. It starts the goroutines that Close ends.
func Open(ctx context.Context, o Options) (*DB, error) {
	db := newDB(o)
	fail := func(err error) (*DB, error) {
		db.cancel()
		return nil, fmt.Errorf("open database %q: %w", o.Path, err)
	}
	if err := db.guard(ctx); err != nil {
		return fail(err)
	}
	if err := db.openFile(); err != nil {
		return fail(err)
	}
	if err := errors.Join(db.count(ctx), db.openRemotes(), db.openMounts(ctx)); err != nil {
		return fail(errors.Join(err, db.bolt.Close()))
	}
	go db.committer.run()
	go db.remover.run()
	go db.unlinker.run()
	for _, d := range db.remotes {
		go d.remote.run()
	}
	return db, nil
}

// openFile opens the file, once it is known to be whole: bbolt panics on
// damage, in part in goroutines of its own.
func (db *DB) openFile() error {
	info, err := os.Stat(db.options.Path)
	isNew := errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0
	if err != nil && !isNew {
		return err
	}
	if !isNew {
		use, err := db.inspect(info.Size())
		if err != nil {
			return err
		}
		db.compactIfFree(use)
	}
	db.bolt, err = db.boltOpen(db.options.Path, bolt.Options{
		NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: mapSize, NoStatistics: true,
	})
	if err != nil {
		return openError(err)
	}
	db.bolt.AllocSize = growth
	db.committer.reserve = newReserve(db.options.Path, db.file)
	if err := db.protect("prepare", db.prepare); err != nil {
		return errors.Join(err, db.bolt.Close())
	}
	if isNew {
		if err := durable.SyncDir("metadata.open", filepath.Dir(db.options.Path)); err != nil {
			return errors.Join(err, db.bolt.Close())
		}
	}
	return nil
}

// boltOpen opens the file. After a panic bbolt would leave it open, and locked.
func (db *DB) boltOpen(path string, o bolt.Options) (file *bolt.DB, err error) {
	var opened *os.File
	o.Timeout = lockTimeout
	o.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		opened, err = os.OpenFile(name, flag, perm)
		return opened, err
	}
	err = db.protect("open", func() (err error) {
		file, err = bolt.Open(path, 0o600, &o)
		return err
	})
	if err == nil {
		db.file = opened
		return file, nil
	}
	if opened != nil {
		if closing := opened.Close(); !errors.Is(closing, os.ErrClosed) {
			err = errors.Join(err, closing)
		}
	}
	return nil, err
}

// inspect looks whether the file is whole. It holds bbolt's lock meanwhile.
func (db *DB) inspect(size int64) (use boltfile.Use, err error) {
	file, err := os.Open(db.options.Path)
	if err != nil {
		return use, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for deadline := time.Now().Add(lockTimeout); ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return use, fmt.Errorf("lock: %w", err)
		}
		if time.Now().After(deadline) {
			return use, openError(berrors.ErrTimeout)
		}
		time.Sleep(lockRetry)
	}
	use, err = boltfile.Inspect(file, size)
	return use, openError(err)
}

// openError says what an error of bbolt means.
func openError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("another process has it open: %w", errdefs.ErrUnavailable)
	case errors.Is(err, errdefs.ErrFailedPrecondition), errors.Is(err, fs.ErrPermission):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return err
	}
	return fmt.Errorf("the file is damaged; run `berthd fsck --repair`, which brings back what can be, or put a backup in its place: %w: %w", err, errdefs.ErrDataLoss)
}

// checkVersion refuses what a newer program wrote.
func checkVersion(tx *bolt.Tx) error {
	b := tx.Bucket([]byte(schemaBucket))
	if b == nil {
		return nil // made, but never prepared
	}
	schema := &rows.Schema{}
	if err := proto.Unmarshal(b.Get([]byte(schemaKey)), schema); err != nil {
		return fmt.Errorf("its schema can't be read: %w", err)
	}
	if schema.Version > SchemaVersion {
		return fmt.Errorf("its schema has version %d, and this berthd knows versions up to %d: a newer berthd wrote it and has to be used: %w",
			schema.Version, SchemaVersion, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// prepare makes the buckets and the schema row of a new database. One that has
// them it does not write to: the disk may be full.
func (db *DB) prepare() error {
	ready := true
	err := db.bolt.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			ready = ready && tx.Bucket([]byte(name)) != nil
		}
		ready = ready && tx.Bucket([]byte(schemaBucket)).Get([]byte(schemaKey)) != nil
		return checkVersion(tx)
	})
	if err != nil || ready {
		return err
	}
	return db.bolt.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		b := tx.Bucket([]byte(schemaBucket))
		if b.Get([]byte(schemaKey)) != nil {
			return nil
		}
		value, err := proto.Marshal(&rows.Schema{Version: SchemaVersion, CreatedAt: protobuf.Timestamp(db.options.Now())})
		if err != nil {
			return err
		}
		return b.Put([]byte(schemaKey), value)
	})
}

// count finds the highest numbers in use, in rows and on disk, so that none is
// given out twice.
func (db *DB) count(ctx context.Context) error {
	err := db.View(func(tx *Tx) error {
		for key, value := range tx.scan(ingestTable.bucket, "") {
			ns, rest, _ := cut(string(key))
			row, err := ingestTable.decode(ns, rest, value)
			if err != nil {
				db.log.Error("unreadable row", slog.Any("error", err))
				continue
			}
			db.ingests.seen(row.BackendRef)
		}
		for key, value := range tx.scan(snapshotTable.bucket, "") {
			ns, rest, _ := cut(string(key))
			row, err := snapshotTable.decode(ns, rest, value)
			if err != nil {
				// Its number is that of a directory, which counts below.
				db.log.Error("unreadable row; run `berth fsck`", slog.Any("error", err))
				continue
			}
			snapshotter, _, _ := cut(rest)
			if d := db.drivers[snapshotter]; d != nil {
				d.seen(snapshots.ID(row.Id))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for info, err := range db.content.Ingests(ctx) {
		if err != nil {
			return fmt.Errorf("ingests on disk: %w", err)
		}
		db.ingests.seen(info.Ref)
	}
	for _, d := range db.drivers {
		for id, err := range d.IDs(ctx) {
			if err != nil {
				return fmt.Errorf("snapshotter %q: %w", d.name, err)
			}
			d.seen(id)
		}
	}
	return nil
}
