package metadata

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/snapshots"
)

// Whole tells whether the directories of a snapshot are there: NotFound if it
// has no row.
func (s *Snapshots) Whole(ctx context.Context, name string) (bool, error) {
	var row *snapshots.Row
	err := s.db.View(func(tx *Tx) (err error) {
		row, err = s.tree(tx).Stat(name)
		return err
	})
	if err != nil {
		return false, err
	}
	if s.driver.remote != nil {
		_, err := s.backend().Stat(ctx, row.Remote)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	return s.driver.whole(ctx, row.ID, row.Kind)
}

// whole tells whether a directory is there with all its parts. A driver that
// can't be asked for one is asked for all.
func (d *driver) whole(ctx context.Context, id snapshots.ID, kind snapshots.Kind) (bool, error) {
	if can, ok := d.Driver.(intact); ok {
		return can.Intact(ctx, id, kind) == nil, nil
	}
	for found, err := range d.IDs(ctx) {
		if err != nil {
			return false, err
		}
		if found == id {
			return true, nil
		}
	}
	return false, nil
}

// Replace has the committed snapshot name stand for the directories of the
// active one key from now on, which is gone then; key must have the same
// parent. It is for a layer that is damaged or missing and was unpacked again.
// The old directories go, so nothing may be mounted that stands on them: while
// name has writable or viewing descendants and its directories are there, it is
// FailedPrecondition.
func (s *Snapshots) Replace(ctx context.Context, name, key string) error {
	if s.driver.remote != nil {
		return fmt.Errorf("replace snapshot %q: snapshotter %q can't: %w", short(name), s.driver.name, errdefs.ErrNotImplemented)
	}
	var old, row *snapshots.Row
	err := s.db.View(func(tx *Tx) (err error) {
		old, row, err = s.replaceable(tx, name, key)
		return err
	})
	if err != nil {
		return err
	}
	there, err := s.driver.whole(ctx, old.ID, old.Kind)
	if err != nil {
		return err
	}
	if err := s.driver.Flush(ctx, row.ID); err != nil {
		return fmt.Errorf("replace snapshot %q: %w", short(name), err)
	}
	usage, err := s.driver.Usage(ctx, row.ID)
	if err != nil {
		return fmt.Errorf("replace snapshot %q: %w", short(name), err)
	}
	var left snapshots.ID
	err = s.db.Update(ctx, func(tx *Tx) error {
		now, active, err := s.replaceable(tx, name, key)
		if err != nil {
			return err
		}
		if active.ID != row.ID || now.ID != old.ID {
			return fmt.Errorf("replace snapshot %q: it was replaced meanwhile: %w", short(name), errdefs.ErrUnavailable)
		}
		if user := s.usedBy(tx, name); there && user != "" {
			return fmt.Errorf("snapshot %q may be in use, as %q stands on it: remove that first: %w", short(name), short(user), errdefs.ErrFailedPrecondition)
		}
		if err := s.tree(tx).Rows.Delete(key); err != nil {
			return err
		}
		left = now.ID
		now.ID, now.Usage, now.UpdatedAt = active.ID, usage, tx.now
		if err := tx.leave(s.scope, s.resource(), key); err != nil {
			return err
		}
		return s.tree(tx).Rows.Put(now)
	})
	if err != nil {
		return err
	}
	s.db.remover.add(directory{s.driver, left})
	return nil
}

// replaceable gives the rows of a replacement.
func (s *Snapshots) replaceable(tx *Tx, name, key string) (old, row *snapshots.Row, err error) {
	tree := s.tree(tx)
	if old, err = tree.Stat(name); err != nil {
		return nil, nil, err
	}
	if row, err = tree.Stat(key); err != nil {
		return nil, nil, err
	}
	if old.Kind != snapshots.Committed || row.Kind != snapshots.Active || old.Parent != row.Parent {
		return nil, nil, fmt.Errorf("snapshot %q (%s, on %q) can't take the place of %q (%s, on %q): %w",
			short(key), row.Kind, short(row.Parent), short(name), old.Kind, short(old.Parent), errdefs.ErrFailedPrecondition)
	}
	return old, row, nil
}

// usedBy gives a writable or viewing snapshot that stands on name, directly or
// not; "" if there is none.
func (s *Snapshots) usedBy(tx *Tx, name string) string {
	queue, seen := []string{name}, map[string]bool{name: true}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		prefix := path(s.scope.Namespace, s.driver.name, parent, "")
		for key := range tx.scan(childrenBucket, prefix) {
			child := string(key[len(prefix):])
			row, err := s.tree(tx).Rows.Get(child)
			if err != nil || row == nil || seen[child] {
				continue
			}
			if row.Kind != snapshots.Committed {
				return child
			}
			seen[child] = true
			queue = append(queue, child)
		}
	}
	return ""
}

// mendDirectory puts right a snapshot whose directories are not there: a layer
// of an image is unpacked again; what nothing can bring back loses its row,
// unless something stands on it.
func (c *check) mendDirectory(p place) fix {
	return func(ctx context.Context) (string, error) {
		sn, err := c.db.Snapshotter(Scope{Namespace: p.ns}, p.snapshotter)
		if err != nil {
			return "", err
		}
		whole, err := sn.Whole(ctx, p.name)
		if errors.Is(err, errdefs.ErrNotFound) || err == nil && whole {
			return "unpacked again, with what stood on it", nil
		}
		if err != nil {
			return "", err
		}
		reason := errors.New("nothing can bring back what was written into it")
		if p.kind == snapshots.Committed && c.options.Repair.Layer != nil {
			if err := c.options.Repair.Layer(ctx, p.ns, p.snapshotter, p.name); err == nil {
				return "unpacked again", nil
			} else if ctx.Err() != nil {
				return "", ctx.Err()
			} else {
				reason = err
			}
		}
		if err := sn.Remove(ctx, p.name); err != nil {
			return "", errors.Join(reason, err)
		}
		return fmt.Sprintf("its row is dropped (%v)", reason), nil
	}
}

// remakeParent unpacks the parent that a snapshot is missing.
func (c *check) remakeParent(ns, snapshotter, name, parent string) fix {
	return func(ctx context.Context) (string, error) {
		if c.options.Repair.Layer == nil {
			return "", fmt.Errorf("layers can't be unpacked here; remove %q", short(name))
		}
		if err := c.options.Repair.Layer(ctx, ns, snapshotter, parent); err != nil {
			return "", fmt.Errorf("%w; what is in %q can still be copied from its directory; then remove it", err, short(name))
		}
		return "the parent is unpacked again", nil
	}
}

// removeDirectory removes a directory without a row.
func (c *check) removeDirectory(d *driver, id snapshots.ID) fix {
	return func(ctx context.Context) (string, error) {
		if d.busy(id) || c.db.hasDirectory(d.name, id) {
			return "", errGone
		}
		return "removed", d.Remove(ctx, id)
	}
}
