package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/snapshots"
)

// Sweep removes what is on disk without a row: what a crash between the two has
// left. It is for the start, and safe at any time; what is in flight is spared.
// Directories go in the background. It also drops the rows of ingests whose
// bytes a power cut took. What it can't do it gives as an error, after all that
// it can.
func (db *DB) Sweep(ctx context.Context) error {
	err := errors.Join(db.sweepBlobs(ctx), db.sweepIngests(ctx), db.sweepIngestRows(ctx), db.sweepMounts(ctx), db.sweepDirectories(ctx))
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

func (db *DB) sweepBlobs(ctx context.Context) error {
	var found []digest.Digest
	for info, err := range db.content.All(ctx) {
		if err != nil {
			return fmt.Errorf("content on disk: %w", err)
		}
		found = append(found, info.Digest)
	}
	// Rows are read after the disk: whoever commits names the bytes meanwhile.
	named := map[string]bool{}
	err := db.View(func(tx *Tx) error {
		for key := range tx.scan(blobTable.bucket, "") {
			_, d, _ := cut(string(key))
			named[d] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range found {
		if named[d.String()] {
			continue
		}
		if _, err := db.removeBlob(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepIngests aborts ingests of the content store that no row names.
func (db *DB) sweepIngests(ctx context.Context) error {
	orphans, err := db.orphanIngests(ctx)
	errs := []error{err}
	for _, backend := range orphans {
		errs = append(errs, db.discard(ctx, backend))
	}
	return errors.Join(errs...)
}

func (db *DB) orphanIngests(ctx context.Context) ([]string, error) {
	var found []string
	for info, err := range db.content.Ingests(ctx) {
		if err != nil {
			return nil, fmt.Errorf("ingests on disk: %w", err)
		}
		// Looked at before the rows: an ingest lands after its row is there.
		if !db.ingests.isBusy(info.Ref) {
			found = append(found, info.Ref)
		}
	}
	named := map[string]bool{}
	err := db.View(func(tx *Tx) error {
		return tx.eachIngest(func(_ string, row *rows.Ingest) error {
			named[row.BackendRef] = true
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	var orphans []string
	for _, ref := range found {
		if !named[ref] {
			orphans = append(orphans, ref)
		}
	}
	return orphans, nil
}

// eachIngest gives the rows of all namespaces.
func (tx *Tx) eachIngest(visit func(ns string, row *rows.Ingest) error) error {
	for key, value := range tx.scan(ingestTable.bucket, "") {
		ns, ref, _ := cut(string(key))
		row, err := ingestTable.decode(ns, ref, value)
		if err != nil {
			return err
		}
		if err := visit(ns, row); err != nil {
			return err
		}
	}
	return nil
}

// lostIngest is a row whose bytes are not there.
type lostIngest struct{ ns, ref, backend string }

func (db *DB) lostIngests(ctx context.Context) ([]lostIngest, error) {
	var all, lost []lostIngest
	err := db.View(func(tx *Tx) error {
		return tx.eachIngest(func(ns string, row *rows.Ingest) error {
			all = append(all, lostIngest{ns, row.GetStatus().GetRef(), row.BackendRef})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		_, err := db.content.Status(ctx, i.backend)
		if errors.Is(err, errdefs.ErrNotFound) {
			lost = append(lost, i)
		} else if err != nil {
			return nil, err
		}
	}
	return lost, nil
}

// sweepIngestRows drops the rows of ingests whose bytes are not there.
func (db *DB) sweepIngestRows(ctx context.Context) error {
	lost, err := db.lostIngests(ctx)
	if err != nil || len(lost) == 0 {
		return err
	}
	return db.Update(ctx, func(tx *Tx) error {
		for _, i := range lost {
			row, err := ingestTable.Get(tx, i.ns, i.ref)
			if errors.Is(err, errdefs.ErrNotFound) || err == nil && (row.BackendRef != i.backend || db.ingests.isHeld(i.ns, i.ref)) {
				continue
			}
			if err != nil {
				return err
			}
			if err := ingestTable.Delete(tx, i.ns, i.ref); err != nil {
				return err
			}
		}
		return nil
	})
}

// sweepDirectories has directories removed that no row stands for.
func (db *DB) sweepDirectories(ctx context.Context) error {
	var errs []error
	for _, d := range db.drivers {
		orphans, err := db.orphanDirectories(ctx, d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(orphans) > 0 {
			db.log.Info("removing snapshot directories without a row", slog.String("snapshotter", d.name), slog.Int("count", len(orphans)))
		}
		for _, id := range orphans {
			db.remover.add(directory{d, id})
		}
	}
	return errors.Join(errs...)
}

func (db *DB) orphanDirectories(ctx context.Context, d *driver) ([]snapshots.ID, error) {
	var found []snapshots.ID
	for id, err := range d.IDs(ctx) {
		if err != nil {
			return nil, fmt.Errorf("snapshotter %q: %w", d.name, err)
		}
		// Looked at before the rows: a number lands after its row is there.
		if !d.busy(id) {
			found = append(found, id)
		}
	}
	named := map[snapshots.ID]bool{}
	err := db.View(func(tx *Tx) error {
		return tx.eachSnapshot(func(_, snapshotter string, row *snapshots.Row) error {
			if snapshotter == d.name {
				named[row.ID] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	var orphans []snapshots.ID
	for _, id := range found {
		if !named[id] && !d.busy(id) {
			orphans = append(orphans, id)
		}
	}
	if len(orphans) == 0 {
		return nil, nil
	}
	// The list was read ahead: one may have been removed between the two looks.
	there := map[snapshots.ID]bool{}
	for id, err := range d.IDs(ctx) {
		if err != nil {
			return nil, fmt.Errorf("snapshotter %q: %w", d.name, err)
		}
		there[id] = true
	}
	return slices.DeleteFunc(orphans, func(id snapshots.ID) bool { return !there[id] }), nil
}
