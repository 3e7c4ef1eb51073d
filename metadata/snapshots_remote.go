package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/snapshots"
)

// backend is the remote snapshotter, on behalf of the namespace.
func (s *Snapshots) backend() snapshots.Snapshotter {
	return s.driver.remote.In(s.scope.Namespace)
}

// passedOn are the labels that a remote snapshotter gets to see.
func passedOn(all map[string]string) map[string]string {
	out := inherited(all)
	if target := all[labels.SnapshotRef]; target != "" {
		if out == nil {
			out = map[string]string{}
		}
		out[labels.SnapshotRef] = target
	}
	return out
}

// merge adds what the snapshotter tells of a row: labels that the row has not.
func merge(row *snapshots.Row, told map[string]string) snapshots.Info {
	info := row.Info()
	for key, value := range told {
		if _, own := info.Labels[key]; own {
			continue
		}
		if info.Labels == nil {
			info.Labels = map[string]string{}
		}
		info.Labels[key] = value
	}
	return info
}

// remoteStat asks the snapshotter for what it knows of a row.
func (s *Snapshots) remoteStat(ctx context.Context, row *snapshots.Row) (snapshots.Info, error) {
	told, err := s.backend().Stat(ctx, row.Remote)
	if errdefs.IsNotFound(err) {
		return snapshots.Info{}, fmt.Errorf("snapshot %q: snapshotter %q has lost it, remove it: %w", short(row.Name), s.driver.name, errdefs.ErrNotFound)
	}
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("snapshot %q: %w", short(row.Name), err)
	}
	return merge(row, told.Labels), nil
}

// remoteList is list with what the snapshotter tells of each snapshot.
func (s *Snapshots) remoteList(ctx context.Context, filters []string) ([]snapshots.Info, error) {
	if err := names.Namespace(s.scope.Namespace); err != nil {
		return nil, err
	}
	var rows []*snapshots.Row
	err := s.db.View(func(tx *Tx) error {
		for stored, err := range snapshotTable.All(tx, s.scope.Namespace, path(s.driver.name, "")) {
			if err != nil {
				return err
			}
			rows = append(rows, treeRow(stored.GetInfo().GetName(), stored))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	told := make(map[string]map[string]string, len(rows))
	for _, row := range rows {
		told[row.Remote] = nil
	}
	if len(rows) > 0 {
		for info, err := range s.backend().All(ctx) {
			if err != nil {
				return nil, err
			}
			if _, ours := told[info.Name]; ours {
				told[info.Name] = info.Labels
			}
		}
	}
	return list(func(yield func(snapshots.Info, error) bool) {
		for _, row := range rows {
			if !yield(merge(row, told[row.Remote]), nil) {
				return
			}
		}
	}, snapshotFields, filters)
}

// remoteUpdate tells the snapshotter of those labels that it gets to see, then
// changes the row.
func (s *Snapshots) remoteUpdate(ctx context.Context, info snapshots.Info, fields []string) (snapshots.Info, error) {
	var row *snapshots.Row
	err := s.db.View(func(tx *Tx) (err error) {
		if row, err = s.tree(tx).Stat(info.Name); err != nil {
			return err
		}
		return updateLabels("snapshot", &row.Labels, info.Labels, fields)
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	var mask []string
	for _, field := range fields {
		key, ok := subKey(field, "labels")
		if !ok || key == labels.SnapshotRef || strings.HasPrefix(key, labels.SnapshotInherited) {
			mask = append(mask, field)
		}
	}
	var told snapshots.Info
	if len(mask) > 0 || len(fields) == 0 {
		told, err = s.backend().Update(ctx, snapshots.Info{Name: row.Remote, Labels: passedOn(row.Labels)}, mask...)
	} else {
		told, err = s.backend().Stat(ctx, row.Remote)
	}
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("snapshot %q: %w", short(info.Name), err)
	}
	if row, err = s.updateRow(ctx, info, fields); err != nil {
		return snapshots.Info{}, err
	}
	return merge(row, told.Labels), nil
}

// remoteCreate has the snapshotter make a snapshot, then adds the row. The key
// is on the list of what may have to go until the row stands.
func (s *Snapshots) remoteCreate(ctx context.Context, row snapshots.Row, parents []snapshots.ID) ([]mount.Mount, error) {
	r := s.driver.remote
	id, land := s.driver.takeID()
	land()
	row.ID, row.Remote = id, remoteKey(s.scope.Namespace, id, row.Name)
	release, err := r.hold(row.Remote)
	if err != nil {
		return nil, err
	}
	defer r.signal()
	defer release()
	parent, err := s.remoteParent(row.Parent)
	if err != nil {
		return nil, err
	}
	if err := r.expect(ctx, s.scope.Namespace, row.Remote, ""); err != nil {
		return nil, err
	}
	create := s.backend().Prepare
	if row.Kind == snapshots.View {
		create = s.backend().View
	}
	target := row.Labels[labels.SnapshotRef]
	mounts, err := create(ctx, row.Remote, parent, passedOn(row.Labels))
	if errdefs.IsAlreadyExists(err) && target != "" {
		return nil, s.handOver(ctx, err, row, target, parent)
	}
	if err != nil {
		r.doubtAbout(row.Remote)
		return nil, s.explain(fmt.Errorf("snapshot %q: %w", short(row.Name), err), func(tree snapshots.Tree) error {
			return second(tree.CheckCreate(row.Name, row.Parent, row.Labels))
		})
	}
	if err := s.record(ctx, row, parents); err != nil {
		if errdefs.IsAlreadyExists(err) {
			err = s.exists(ctx, err, row.Name, target)
		}
		return nil, err
	}
	return mounts, nil
}

// remoteParent is the key that the snapshotter knows a parent by.
func (s *Snapshots) remoteParent(name string) (key string, err error) {
	if name == "" {
		return "", nil
	}
	err = s.db.View(func(tx *Tx) error {
		row, err := s.tree(tx).Stat(name)
		if err == nil {
			key = row.Remote
		}
		return err
	})
	return key, err
}

// handOver records what the snapshotter has already, under the name that was to
// be made: a committed snapshot with that label, on the same parent. It gives
// answer, which tells the caller to use that one.
func (s *Snapshots) handOver(ctx context.Context, answer error, row snapshots.Row, target, parent string) error {
	r := s.driver.remote
	has := "labels." + strconv.Quote(labels.SnapshotRef) + "==" + strconv.Quote(target) + ",parent==" + strconv.Quote(parent)
	key := ""
	for info, err := range s.backend().All(ctx, has) {
		if err != nil {
			return fmt.Errorf("snapshot %q: %w", short(row.Name), err)
		}
		if info.Kind == snapshots.Committed && info.Parent == parent && info.Labels[labels.SnapshotRef] == target {
			key = info.Name
			break
		}
	}
	if key == "" {
		return fmt.Errorf("snapshotter %q says that snapshot %q is there, but lists no such layer on its parent: %w", s.driver.name, short(target), errdefs.ErrNotFound)
	}
	if err := text("snapshotter "+s.driver.name+": its key", key); err != nil {
		return err
	}
	release, err := r.hold(key)
	if err != nil {
		return err
	}
	defer release()
	// It may have been removed before it was held.
	if _, err := s.backend().Stat(ctx, key); err != nil {
		return fmt.Errorf("snapshot %q: %w", short(target), err)
	}
	err = s.db.Update(ctx, func(tx *Tx) error { return s.recordHandedOver(tx, row, target, key, parent) })
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return s.exists(ctx, answer, target)
}

// recordHandedOver adds the row of a layer that the snapshotter has by itself.
func (s *Snapshots) recordHandedOver(tx *Tx, row snapshots.Row, target, key, parent string) error {
	tree := s.tree(tx)
	about := maps.Clone(row.Labels)
	delete(about, labels.SnapshotRef) // which is taken by nobody yet, and checked as a target
	if _, err := tree.CheckCreate(target, row.Parent, about); err != nil {
		return err
	}
	if row.Parent != "" {
		now, err := tree.Stat(row.Parent)
		if err != nil {
			return err
		}
		if now.Remote != parent {
			return fmt.Errorf("snapshot %q: its parent %q was replaced meanwhile: %w", short(target), short(row.Parent), errdefs.ErrUnavailable)
		}
	}
	if err := tx.unpend(s.driver.name, key); err != nil {
		return err
	}
	return tree.Rows.Put(&snapshots.Row{
		ID: row.ID, Kind: snapshots.Committed, Name: target, Parent: row.Parent, Labels: row.Labels, Remote: key,
		CreatedAt: tx.now, UpdatedAt: tx.now,
	})
}

// remoteCommit has the snapshotter commit under a new key, then does the same
// to the row.
func (s *Snapshots) remoteCommit(ctx context.Context, key, parent string, active *snapshots.Row, row snapshots.Row) error {
	r := s.driver.remote
	id, land := s.driver.takeID()
	land()
	row.Remote = remoteKey(s.scope.Namespace, id, row.Name)
	release, err := r.hold(row.Remote)
	if err != nil {
		return err
	}
	defer r.signal()
	defer release()
	base := ""
	if parent != "" && parent != active.Parent {
		if base, err = s.remoteParent(parent); err != nil {
			return err
		}
	}
	if err := r.expect(ctx, s.scope.Namespace, row.Remote, active.Remote); err != nil {
		return err
	}
	s.flushRemote(ctx, active)
	if err := s.backend().Commit(ctx, row.Remote, active.Remote, base, passedOn(row.Labels)); err != nil {
		r.doubtAbout(row.Remote)
		return s.explain(fmt.Errorf("commit snapshot %q: %w", short(key), err), func(tree snapshots.Tree) error {
			return second(tree.CheckCommit(row.Name, key, parent))
		})
	}
	return s.db.Update(ctx, func(tx *Tx) error {
		if err := s.recordCommit(tx, key, parent, row); err != nil {
			return err
		}
		tree := s.tree(tx)
		named, err := tree.Stat(row.Name)
		if err != nil {
			return err
		}
		named.ID = id
		if err := tree.Rows.Put(named); err != nil {
			return err
		}
		return tx.unpend(s.driver.name, row.Remote)
	})
}

// flushRemote has what was written into a snapshot be on disk before it is a
// layer, as far as its directories are on this machine. How durable a layer is that
// is kept elsewhere is the snapshotter's affair.
func (s *Snapshots) flushRemote(ctx context.Context, active *snapshots.Row) {
	mounts, err := s.backend().Mounts(ctx, active.Remote)
	if err != nil {
		return // the commit tells
	}
	for _, m := range mounts {
		dir := m.Source
		for _, option := range m.Options {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				dir = upper
			}
		}
		if err := durable.SyncFS("metadata.remote", dir); err != nil {
			s.db.log.Debug("layer of a remote snapshotter not flushed from here", slog.String("snapshotter", s.driver.name), slog.Any("error", err))
		}
	}
}

// recordCommit gives a layer its name in the rows.
func (s *Snapshots) recordCommit(tx *Tx, key, parent string, row snapshots.Row) error {
	if err := tx.needLease(s.scope); err != nil {
		return err
	}
	row.CreatedAt = tx.now
	if _, err := s.tree(tx).Commit(key, parent, row); err != nil {
		return err
	}
	tx.publish(s.scope.Namespace, "/snapshot/commit", &apievents.SnapshotCommit{
		Key: key, Name: row.Name, Snapshotter: s.driver.name,
	})
	if err := tx.leave(s.scope, s.resource(), key); err != nil {
		return err
	}
	return tx.join(s.scope, s.resource(), row.Name)
}

// Cleanup has a remote snapshotter remove now what it put off. Unimplemented:
// this snapshotter puts nothing off that a collection would not remove.
func (s *Snapshots) Cleanup(ctx context.Context) error {
	if s.driver.remote == nil {
		return fmt.Errorf("cleanup of snapshotter %q: what was removed goes with the next collection, which deleting a lease with sync brings on: %w",
			s.driver.name, errdefs.ErrNotImplemented)
	}
	return s.driver.remote.Cleanup(ctx)
}

// checkRemotes looks whether remote snapshotters have what rows name.
func (c *check) checkRemotes() error {
	for _, name := range slices.Sorted(maps.Keys(c.db.remotes)) {
		if err := c.checkRemote(c.db.remotes[name]); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) checkRemote(d *driver) error {
	wanted := map[string]nameOf{}
	err := c.db.View(func(tx *Tx) error {
		return tx.eachSnapshot(func(ns, snapshotter string, row *snapshots.Row) error {
			if snapshotter == d.name {
				wanted[row.Remote] = nameOf{ns, row.Name}
			}
			return nil
		})
	})
	if err != nil || len(wanted) == 0 {
		return err
	}
	for info, err := range d.remote.In("").All(c.ctx) {
		if err != nil {
			c.report("snapshotter", "", d.name, "it can't be asked what it has: %v", err)
			return c.ctx.Err()
		}
		delete(wanted, info.Name)
	}
	for key, at := range wanted {
		// It may have been removed, or committed, since the rows were read.
		_, err := d.remote.In(at.ns).Stat(c.ctx, key)
		if !errors.Is(err, errdefs.ErrNotFound) || !c.stillNames(d.name, at, key) {
			continue
		}
		c.report("snapshot", at.ns, at.name, "snapshotter %s has lost it, which calls it %q", d.name, short(key))
	}
	return nil
}

func (c *check) stillNames(snapshotter string, at nameOf, key string) bool {
	names := false
	err := c.db.View(func(tx *Tx) error {
		row, err := treeRows{tx, at.ns, snapshotter}.Get(at.name)
		names = row != nil && row.Remote == key
		return err
	})
	return err == nil && names
}
