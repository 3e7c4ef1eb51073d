package metadata

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/snapshots"
)

// Snapshots is one snapshotter's snapshots of a namespace: names and rules as
// rows, directories by a driver, or by a snapshotter outside of the daemon.
type Snapshots struct {
	db     *DB
	scope  Scope
	driver *driver
}

var _ snapshots.Snapshotter = (*Snapshots)(nil)

// Snapshotter is the snapshotter of that name; InvalidArgument if there is
// none, or no name.
func (db *DB) Snapshotter(s Scope, name string) (*Snapshots, error) {
	if name == "" {
		return nil, fmt.Errorf("the name of a snapshotter is required: %w", errdefs.ErrInvalidArgument)
	}
	d := db.drivers[name]
	if d == nil {
		d = db.remotes[name]
	}
	if d == nil {
		return nil, fmt.Errorf("snapshotter %q is not there, only %q: %w", short(name), db.Snapshotters(), errdefs.ErrInvalidArgument)
	}
	return &Snapshots{db, s, d}, nil
}

// Snapshotters lists the names of all snapshotters, sorted.
func (db *DB) Snapshotters() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for _, all := range []map[string]*driver{db.drivers, db.remotes} {
			for name := range all {
				if !yield(name) {
					return
				}
			}
		}
	})
}

// Rebases tells whether a layer that was prepared without a parent can take one on
// at its commit: then layers can be laid down before those below them are there.
func (s *Snapshots) Rebases() bool { return s.driver.rebase && s.driver.remote == nil }

// Below gives mounts that show the committed snapshot of that name, read-only, as a
// view of it would, without making one: they are good as long as something else
// keeps the snapshot. NotFound; Unimplemented where the driver's layers do not stand
// by themselves.
func (s *Snapshots) Below(name string) ([]mount.Mount, error) {
	if err := s.check("snapshot name", name); err != nil {
		return nil, err
	}
	if !s.Rebases() {
		return nil, fmt.Errorf("layers of snapshotter %q have no directories of their own: %w", s.driver.name, errdefs.ErrNotImplemented)
	}
	var ids []snapshots.ID
	err := s.db.View(func(tx *Tx) (err error) {
		ids, err = s.tree(tx).Ancestry(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.driver.Mounts(0, ids, snapshots.CreateOptions{Kind: snapshots.View})
}

// resource is the type of this snapshotter's snapshots in leases.
func (s *Snapshots) resource() string { return resourceSnapshots + s.driver.name }

func (s *Snapshots) tree(tx *Tx) snapshots.Tree {
	return snapshots.Tree{Rows: treeRows{tx, s.scope.Namespace, s.driver.name}, Rebase: s.driver.rebase}
}

func (s *Snapshots) check(what, name string) error {
	if err := names.Namespace(s.scope.Namespace); err != nil {
		return err
	}
	return text(what, name)
}

// Stat implements snapshots.Snapshotter: NotFound.
func (s *Snapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := s.check("snapshot key", key); err != nil {
		return snapshots.Info{}, err
	}
	var row *snapshots.Row
	err := s.db.View(func(tx *Tx) (err error) {
		row, err = s.tree(tx).Stat(key)
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	if s.driver.remote != nil {
		return s.remoteStat(ctx, row)
	}
	return s.info(row), nil
}

// Update implements snapshots.Snapshotter: NotFound, InvalidArgument.
func (s *Snapshots) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	if err := s.check("snapshot key", info.Name); err != nil {
		return snapshots.Info{}, err
	}
	if s.driver.remote != nil {
		return s.remoteUpdate(ctx, info, fields)
	}
	row, err := s.updateRow(ctx, info, fields)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.info(row), nil
}

// labeler is what drivers can do that tell of a snapshot in labels.
type labeler interface {
	Labels(id snapshots.ID, kind snapshots.Kind) map[string]string
}

// info gives a row as callers see it, with what the driver tells of it.
func (s *Snapshots) info(row *snapshots.Row) snapshots.Info {
	if l, ok := s.driver.Driver.(labeler); ok {
		return merge(row, l.Labels(row.ID, row.Kind))
	}
	return row.Info()
}

// updateRow changes the labels of a row.
func (s *Snapshots) updateRow(ctx context.Context, info snapshots.Info, fields []string) (row *snapshots.Row, err error) {
	err = s.db.Update(ctx, func(tx *Tx) (err error) {
		tree := s.tree(tx)
		row, err = tree.Stat(info.Name)
		if err != nil {
			return err
		}
		before := cloneLabels(row.Labels)
		if err := updateLabels("snapshot", &row.Labels, info.Labels, fields); err != nil {
			return err
		}
		row.UpdatedAt = tx.now
		tx.garbage = tx.garbage || losesReference(before, row.Labels)
		return tree.Rows.Put(row)
	})
	return row, err
}

// Usage implements snapshots.Snapshotter: NotFound. That of a committed
// snapshot was measured at its commit.
func (s *Snapshots) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	if err := s.check("snapshot key", key); err != nil {
		return snapshots.Usage{}, err
	}
	var row *snapshots.Row
	err := s.db.View(func(tx *Tx) (err error) {
		row, err = s.tree(tx).Stat(key)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	if s.driver.remote != nil {
		usage, err := s.backend().Usage(ctx, row.Remote)
		if err != nil {
			return snapshots.Usage{}, fmt.Errorf("snapshot %q: %w", short(key), err)
		}
		return usage, nil
	}
	if row.Kind == snapshots.Committed {
		return row.Usage, nil
	}
	usage, err := s.driver.Usage(ctx, row.ID)
	if err != nil {
		return snapshots.Usage{}, s.explain(fmt.Errorf("snapshot %q: usage: %w", short(key), err), func(tree snapshots.Tree) error {
			return second(tree.Stat(key))
		})
	}
	return usage, nil
}

// Mounts implements snapshots.Snapshotter: NotFound, FailedPrecondition.
func (s *Snapshots) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := s.check("snapshot key", key); err != nil {
		return nil, err
	}
	var (
		row     *snapshots.Row
		parents []snapshots.ID
	)
	err := s.db.View(func(tx *Tx) (err error) {
		row, parents, err = s.tree(tx).Mountable(key)
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.driver.remote != nil {
		mounts, err := s.backend().Mounts(ctx, row.Remote)
		if err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", short(key), err)
		}
		return mounts, nil
	}
	mounts, err := s.driver.Mounts(row.ID, parents, snapshots.CreateOptions{Kind: row.Kind, Labels: inherited(row.Labels)})
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: mounts: %w", short(key), err)
	}
	return mounts, nil
}

// All implements snapshots.Snapshotter: the snapshots that one of the filters
// matches, in byte order of their names. They are those of one moment; no
// transaction is open while they are handed out.
func (s *Snapshots) All(ctx context.Context, filters ...string) iter.Seq2[snapshots.Info, error] {
	return func(yield func(snapshots.Info, error) bool) {
		infos, err := s.list(ctx, filters)
		if err != nil {
			yield(snapshots.Info{}, err)
			return
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (s *Snapshots) list(ctx context.Context, filters []string) (infos []snapshots.Info, err error) {
	if s.driver.remote != nil {
		return s.remoteList(ctx, filters)
	}
	if err := names.Namespace(s.scope.Namespace); err != nil {
		return nil, err
	}
	err = s.db.View(func(tx *Tx) (err error) {
		infos, err = list(func(yield func(snapshots.Info, error) bool) {
			for stored, err := range snapshotTable.All(tx, s.scope.Namespace, path(s.driver.name, "")) {
				var info snapshots.Info
				if err == nil {
					info = s.info(treeRow(stored.GetInfo().GetName(), stored))
				}
				if !yield(info, err) {
					return
				}
			}
		}, snapshotFields, filters)
		return err
	})
	return infos, err
}

// errRemoved says that a snapshot that was found in place of the wanted one was
// removed before it could join the lease.
var errRemoved = fmt.Errorf("removed at this moment: %w", errdefs.ErrUnavailable)

// exists has a snapshot that is there in place of the wanted one join the
// lease, and gives the error that told of it; errRemoved if it is gone by now.
func (s *Snapshots) exists(ctx context.Context, answer error, candidates ...string) error {
	if s.scope.Lease == "" {
		return answer
	}
	err := s.db.Update(ctx, func(tx *Tx) error {
		for _, name := range candidates {
			if name != "" && snapshotTable.Has(tx, s.scope.Namespace, path(s.driver.name, name)) {
				return tx.join(s.scope, s.resource(), name)
			}
		}
		return errRemoved
	})
	if err != nil {
		return err
	}
	return answer
}

// validLabels gives a copy of labels as they are stored.
func validLabels(given map[string]string) (map[string]string, error) {
	given = kept(given)
	if err := labels.Validate(given); err != nil {
		return nil, err
	}
	return given, nil
}
