package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// undoTimeout bounds the removal of what could not be made: the directory of a
// snapshot that got no row, an ingest that is not to become a blob.
const undoTimeout = 30 * time.Second

// Prepare implements snapshots.Snapshotter: AlreadyExists, NotFound,
// InvalidArgument.
func (s *Snapshots) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.Row{Kind: snapshots.Active, Name: key, Parent: parent, Labels: labels})
}

// View implements snapshots.Snapshotter: AlreadyExists, NotFound,
// InvalidArgument.
func (s *Snapshots) View(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.Row{Kind: snapshots.View, Name: key, Parent: parent, Labels: labels})
}

// create makes a snapshot, unless one that is there joins the lease in its place.
func (s *Snapshots) create(ctx context.Context, row snapshots.Row) ([]mount.Mount, error) {
	for {
		mounts, err := s.tryCreate(ctx, row)
		if !errors.Is(err, errRemoved) || ctx.Err() != nil {
			return mounts, err
		}
	}
}

// tryCreate makes the directories, then the row.
func (s *Snapshots) tryCreate(ctx context.Context, row snapshots.Row) ([]mount.Mount, error) {
	if err := s.check("snapshot key", row.Name); err != nil {
		return nil, err
	}
	var err error
	if row.Labels, err = validLabels(row.Labels); err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", short(row.Name), err)
	}
	target := row.Labels[labels.SnapshotRef]
	var parents []snapshots.ID
	err = s.db.View(func(tx *Tx) (err error) {
		if err := tx.needLease(s.scope); err != nil {
			return err
		}
		parents, err = s.tree(tx).CheckCreate(row.Name, row.Parent, row.Labels)
		return err
	})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil, s.exists(ctx, err, row.Name, target)
	}
	if err != nil {
		return nil, err
	}

	if s.driver.remote != nil {
		return s.remoteCreate(ctx, row, parents)
	}
	var land func()
	row.ID, land = s.driver.takeID()
	defer land()
	o := snapshots.CreateOptions{Kind: row.Kind, Labels: inherited(row.Labels), Layer: target != ""}
	if err := s.driver.Create(ctx, row.ID, parents, o); err != nil {
		return nil, s.explain(fmt.Errorf("snapshot %q: %w", short(row.Name), err), func(tree snapshots.Tree) error {
			return second(tree.CheckCreate(row.Name, row.Parent, row.Labels))
		})
	}
	if err := s.record(ctx, row, parents); err != nil {
		err = s.undo(ctx, err, row)
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			err = s.exists(ctx, err, row.Name, target)
		}
		return nil, err
	}
	mounts, err := s.driver.Mounts(row.ID, parents, o)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: mounts: %w", short(row.Name), err)
	}
	return mounts, nil
}

// record adds the row of a snapshot whose directories are there.
func (s *Snapshots) record(ctx context.Context, row snapshots.Row, parents []snapshots.ID) error {
	return s.db.Update(ctx, func(tx *Tx) error {
		if err := tx.needLease(s.scope); err != nil {
			return err
		}
		row.CreatedAt = tx.now
		if err := s.tree(tx).Create(row, parents); err != nil {
			return err
		}
		if row.Remote != "" {
			if err := tx.unpend(s.driver.name, row.Remote); err != nil {
				return err
			}
		}
		if row.Kind == snapshots.Active {
			tx.publish(s.scope.Namespace, "/snapshot/prepare", &apievents.SnapshotPrepare{
				Key: row.Name, Parent: row.Parent, Snapshotter: s.driver.name,
			})
		}
		return tx.join(s.scope, s.resource(), row.Name)
	})
}

// undo removes the directories of a snapshot that got no row, and gives err
// with what went wrong at that.
func (s *Snapshots) undo(ctx context.Context, err error, row snapshots.Row) error {
	if s.db.hasDirectory(s.driver.name, row.ID) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undone := s.driver.Remove(ctx, row.ID); undone != nil {
		return errors.Join(err, fmt.Errorf("undo: %w", undone))
	}
	return err
}

// explain gives a reason for a driver's failure if the rules know one by now:
// what it worked on may have been removed under its hands.
func (s *Snapshots) explain(failed error, rule func(snapshots.Tree) error) error {
	err := s.db.View(func(tx *Tx) error { return rule(s.tree(tx)) })
	if err != nil {
		return err
	}
	return failed
}

// second is the error of a call that gives two things.
func second[T any](_ T, err error) error { return err }

// hasDirectory tells whether any row, whatever its name by now, stands for a
// directory; on doubt one does. It reads all rows of the snapshotter.
func (db *DB) hasDirectory(snapshotter string, id snapshots.ID) bool {
	has := false
	err := db.View(func(tx *Tx) error {
		return tx.eachSnapshot(func(_ string, name string, row *snapshots.Row) error {
			has = has || name == snapshotter && row.ID == id
			return nil
		})
	})
	return err != nil || has
}

// Commit implements snapshots.Snapshotter: NotFound, FailedPrecondition,
// AlreadyExists, InvalidArgument. The layer is on disk before it has its name.
func (s *Snapshots) Commit(ctx context.Context, name, key, parent string, given map[string]string) error {
	for {
		err := s.tryCommit(ctx, name, key, parent, given)
		if !errors.Is(err, errRemoved) || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Snapshots) tryCommit(ctx context.Context, name, key, parent string, given map[string]string) error {
	if err := s.check("snapshot key", key); err != nil {
		return err
	}
	if err := text("snapshot name", name); err != nil {
		return err
	}
	given, err := validLabels(given)
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", short(name), err)
	}
	var row *snapshots.Row
	err = s.db.View(func(tx *Tx) (err error) {
		if err := tx.needLease(s.scope); err != nil {
			return err
		}
		row, err = s.tree(tx).CheckCommit(name, key, parent)
		return err
	})
	if err == nil && s.driver.remote != nil {
		err = s.remoteCommit(ctx, key, parent, row, snapshots.Row{ID: row.ID, Name: name, Labels: given})
	} else if err == nil {
		err = s.commit(ctx, key, parent, snapshots.Row{ID: row.ID, Name: name, Labels: given})
	}
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return s.exists(ctx, err, name)
	}
	return err
}

// commit flushes and measures the layer, then names it.
func (s *Snapshots) commit(ctx context.Context, key, parent string, row snapshots.Row) error {
	err := s.driver.Flush(ctx, row.ID)
	if err == nil {
		row.Usage, err = s.driver.Usage(ctx, row.ID)
	}
	if err != nil {
		return s.explain(fmt.Errorf("commit snapshot %q: %w", short(key), err), func(tree snapshots.Tree) error {
			return second(tree.CheckCommit(row.Name, key, parent))
		})
	}
	return s.db.Update(ctx, func(tx *Tx) error { return s.recordCommit(tx, key, parent, row) })
}

// Remove implements snapshots.Snapshotter: NotFound, FailedPrecondition. The
// directories go later.
func (s *Snapshots) Remove(ctx context.Context, key string) error {
	if err := s.check("snapshot key", key); err != nil {
		return err
	}
	var row *snapshots.Row
	err := s.db.Update(ctx, func(tx *Tx) (err error) {
		row, err = tx.removeSnapshot(s.scope.Namespace, s.driver.name, key)
		if err != nil {
			return err
		}
		tx.garbage = true
		return tx.leave(s.scope, s.resource(), key)
	})
	if s.driver.remote != nil {
		s.driver.remote.signal()
		return err
	}
	// Also after an error, which may have come too late to undo anything.
	if row != nil && (err == nil || !s.db.hasDirectory(s.driver.name, row.ID)) {
		s.db.remover.add(directory{s.driver, row.ID})
	}
	return err
}

// removeSnapshot removes the row of a snapshot and has that published.
func (tx *Tx) removeSnapshot(ns, snapshotter, key string) (*snapshots.Row, error) {
	row, err := snapshots.Tree{Rows: treeRows{tx, ns, snapshotter}}.Remove(key)
	if err != nil {
		return nil, err
	}
	if row.Remote != "" {
		if err := tx.pend(snapshotter, ns, row.Remote, ""); err != nil {
			return nil, err
		}
	}
	tx.publish(ns, "/snapshot/remove", &apievents.SnapshotRemove{Key: key, Snapshotter: snapshotter})
	return row, nil
}

// removeDirectory has the directory of a removed row go some time later. The
// driver may not be there any more: then it stays.
func (db *DB) removeDirectory(snapshotter string, id snapshots.ID) {
	if d := db.remotes[snapshotter]; d != nil {
		d.remote.signal()
		return
	}
	if d := db.drivers[snapshotter]; d != nil {
		db.remover.add(directory{d, id})
		return
	}
	db.log.Warn("snapshot directory kept, its snapshotter is not there",
		slog.String("snapshotter", snapshotter), slog.Any("id", id))
}
