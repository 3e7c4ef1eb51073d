package metadata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/timestamppb"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata/boltfile"
	"github.com/berthd/berth/snapshots"
)

const (
	// damagedMark is in the name that a damaged database gets, before the time.
	damagedMark = ".damaged-"
	// rebuiltEnd ends the name of one that is rebuilt and not in its place yet.
	rebuiltEnd = ".rebuilt"
	rebuildOp  = "metadata.rebuild"
	// lostName begins the names of snapshots whose own are lost.
	lostName = "lost-"
)

// Rebuilt tells what a rebuilt database was made of.
type Rebuilt struct {
	Aside   string // where the damaged file is now; empty if there was none
	Copy    string // the copy that was used; empty if there was none
	Damage  string // what was wrong
	Rows    int    // rows from the damaged file
	Copied  int    // rows from the copy alone
	Missing map[string]error
}

// Rebuild makes a whole database of a damaged or missing one: of the rows that
// can still be read, and for buckets that have lost some, or all of them, of
// the newest whole copy beside it. The damaged file is kept under another name.
// FailedPrecondition: the database is whole. Rows and disk have to be brought
// together after that, with Adopt and Check.
func Rebuild(o Options) (Rebuilt, error) {
	var out Rebuilt
	err := VerifyFile(o.Path)
	if err == nil {
		return out, fmt.Errorf("database %q is whole: %w", o.Path, errdefs.ErrFailedPrecondition)
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if !missing && !errors.Is(err, errdefs.ErrDataLoss) {
		return out, err
	}
	out.Damage = err.Error()
	// It gets that name when it is whole: one that is there is of a rebuild that
	// was cut off behind that.
	next := o.Path + rebuiltEnd
	if !missing || VerifyFile(next) != nil {
		part := next + durable.TempPrefix
		if err := errors.Join(ignoreAbsent(os.Remove(part)), ignoreAbsent(os.Remove(next))); err != nil {
			return out, err
		}
		if err := out.fill(o, part, missing); err != nil {
			return out, fmt.Errorf("rebuild database %q: %w", o.Path, err)
		}
		if err := durable.Rename(rebuildOp+".whole", part, next); err != nil {
			return out, fmt.Errorf("rebuild database %q: %w", o.Path, err)
		}
	}
	if !missing {
		now := newDB(o).options.Now()
		out.Aside = o.Path + damagedMark + now.UTC().Format("20060102T150405.000000000")
		if err := durable.Rename(rebuildOp+".aside", o.Path, out.Aside); err != nil {
			return out, fmt.Errorf("rebuild database %q: %w", o.Path, err)
		}
	}
	if err := durable.Rename(rebuildOp, next, o.Path); err != nil {
		return out, fmt.Errorf("rebuild database %q: %w", o.Path, err)
	}
	return out, nil
}

// fill writes the new file.
func (r *Rebuilt) fill(o Options, next string, missing bool) error {
	db := newDB(o)
	defer db.cancel()
	db.options.Path = next
	err := db.protect("open", func() (err error) {
		db.bolt, err = bolt.Open(next, 0o600, &bolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
		return err
	})
	if err != nil {
		return err
	}
	err = db.protect("prepare", db.prepare)
	if err == nil {
		damaged := o.Path
		if missing {
			damaged = ""
		}
		err = r.salvage(db, damaged)
	}
	if err == nil {
		err = r.complete(db, o.Path)
	}
	if err == nil {
		err = db.protect("flush", db.bolt.Sync)
	}
	return errors.Join(err, db.bolt.Close())
}

// salvage copies the rows that can be read of a damaged file.
func (r *Rebuilt) salvage(db *DB, path string) error {
	r.Missing = map[string]error{"": errors.New("the file is missing")}
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return db.protect("salvage", func() error {
		return db.bolt.Update(func(tx *bolt.Tx) error {
			var failed error
			unsound := map[string]error{}
			// A bucket that is none of ours is one of ours whose name is damaged; which
			// one is not known.
			known := func(bucket string) bool { return tx.Bucket([]byte(bucket)) != nil }
			strange := ""
			lost, err := boltfile.Salvage(f, info.Size(), func(bucket string, key, value []byte) {
				if !known(bucket) {
					strange = bucket
					return
				}
				if failed != nil || bucket == schemaBucket {
					return
				}
				if err := sound(bucket, string(key), value); err != nil {
					unsound[bucket] = err
					return
				}
				r.Rows++
				failed = tx.Bucket([]byte(bucket)).Put(key, value)
			})
			if err != nil {
				r.Missing = map[string]error{"": err}
				return nil // nothing can be read
			}
			for bucket := range lost {
				if bucket != "" && !known(bucket) {
					strange = bucket
				}
			}
			if strange != "" && lost[""] == nil {
				lost[""] = fmt.Errorf("there is a bucket %q, which has no meaning", strange)
			}
			r.Missing = lost
			for bucket, err := range unsound {
				if lost[bucket] == nil {
					lost[bucket] = err
				}
			}
			return failed
		})
	})
}

// complete adds what the salvaged buckets have lost from the newest whole copy.
func (r *Rebuilt) complete(db *DB, path string) error {
	if len(r.Missing) == 0 {
		return nil
	}
	for _, end := range []string{Generation, OlderGeneration} {
		if VerifyFile(path+end) == nil {
			r.Copy = path + end
			break
		}
	}
	if r.Copy == "" {
		return nil
	}
	f, err := os.Open(r.Copy)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, all := r.Missing[""]
	return db.protect("complete", func() error {
		return db.bolt.Update(func(tx *bolt.Tx) error {
			var failed error
			_, err := boltfile.Salvage(f, info.Size(), func(bucket string, key, value []byte) {
				b := tx.Bucket([]byte(bucket))
				_, lost := r.Missing[bucket]
				if failed != nil || b == nil || bucket == schemaBucket || !lost && !all || b.Get(key) != nil {
					return
				}
				r.Copied++
				failed = b.Put(key, value)
			})
			return errors.Join(err, failed)
		})
	})
}

// Adopt gives rows to what is on disk and has none, in place of removing it:
// blobs in the namespace, directories of snapshots as snapshots named lost-N. A
// label keeps both from collection. It is for after a rebuild.
func (db *DB) Adopt(ctx context.Context, ns string) (blobs []digest.Digest, directories int, err error) {
	for info, err := range db.content.All(ctx) {
		if err != nil {
			return blobs, directories, err
		}
		adopted := false
		err := db.Update(ctx, func(tx *Tx) error {
			if adopted = !tx.hasBlob(info.Digest.String()); !adopted {
				return nil
			}
			return blobTable.Create(tx, ns, info.Digest.String(), &contentapi.Info{
				Digest: info.Digest.String(), Size: info.Size, Labels: adoptedLabels(tx.now),
				CreatedAt: timestamppb.New(info.CreatedAt), UpdatedAt: timestamppb.New(tx.now),
			})
		})
		if err != nil {
			return blobs, directories, fmt.Errorf("blob %s: %w", info.Digest, err)
		}
		if adopted {
			blobs = append(blobs, info.Digest)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(db.drivers)) {
		n, err := db.adoptDirectories(ctx, ns, db.drivers[name])
		directories += n
		if err != nil {
			return blobs, directories, err
		}
	}
	return blobs, directories, nil
}

func adoptedLabels(now time.Time) map[string]string {
	return map[string]string{labels.GCRoot: now.UTC().Format(time.RFC3339)}
}

func (db *DB) adoptDirectories(ctx context.Context, ns string, d *driver) (int, error) {
	orphans, err := db.orphanDirectories(ctx, d)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, id := range orphans {
		kind := snapshots.Active
		if whole, err := d.whole(ctx, id, kind); err != nil || !whole {
			kind = snapshots.View // it has what there is to see
		}
		if whole, err := d.whole(ctx, id, kind); err != nil || !whole {
			continue // half of one: the check removes it
		}
		err := db.Update(ctx, func(tx *Tx) error {
			return treeRows{tx, ns, d.name}.Put(&snapshots.Row{
				ID: id, Kind: kind, Name: lostName + id.String(), CreatedAt: tx.now, UpdatedAt: tx.now,
				Labels: adoptedLabels(tx.now),
			})
		})
		if err != nil {
			return n, fmt.Errorf("snapshot directory %s of %s: %w", id, d.name, err)
		}
		n++
	}
	return n, nil
}

// guard refuses to make a new database beside blobs or snapshots: the first
// sweep would remove all of them.
func (db *DB) guard(ctx context.Context) error {
	info, err := os.Stat(db.options.Path)
	if err == nil && info.Size() > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // whatever is wrong with it is told when it is opened
	}
	what := ""
	for b, err := range db.content.All(ctx) {
		if err != nil {
			return fmt.Errorf("content on disk: %w", err)
		}
		what = "blobs, such as " + b.Digest.String()
		break
	}
	for name, d := range db.drivers {
		for id, err := range d.IDs(ctx) {
			if err != nil {
				return fmt.Errorf("snapshotter %q: %w", name, err)
			}
			what = fmt.Sprintf("snapshots, such as directory %s of %s", id, name)
			break
		}
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("it is missing, but there are %s. An empty one would have all of them removed: "+
		"run `berthd fsck --repair`, which brings back what can be, or put a backup in its place: %w", what, errdefs.ErrDataLoss)
}
