package metadata

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"time"

	"github.com/berthd/berth/snapshots"
)

// keeper is what content stores and drivers can do that keep directories of
// their own: tell what is in there and is nothing of theirs.
type keeper interface {
	// Strays lists the names of what is there and belongs to nothing, relative
	// to the directory. What is being made or removed is none.
	Strays(ctx context.Context) iter.Seq2[string, error]
	// RemoveStray removes one of them with all in it. That it is gone already,
	// or is a stray no more, is no error.
	RemoveStray(ctx context.Context, name string) error
}

// intact is what drivers can do whose directories have parts: tell what is
// missing of one.
type intact interface {
	Intact(ctx context.Context, id snapshots.ID, kind snapshots.Kind) error
}

// place is a snapshot as a check sees it.
type place struct {
	ns, snapshotter, name, parent string
	id                            snapshots.ID
	kind                          snapshots.Kind
	depth                         int // how many ancestors it has
}

// places lists the snapshots of all namespaces, those that stand on others
// first.
func (c *check) places() ([]place, error) {
	var all []place
	at := map[[3]string]int{}
	err := c.db.View(func(tx *Tx) error {
		for key, value := range tx.scan(snapshotTable.bucket, "") {
			ns, rest, _ := cut(string(key))
			snapshotter, name, _ := cut(rest)
			stored, err := snapshotTable.decode(ns, rest, value)
			if err != nil {
				continue // reported already
			}
			row := treeRow(name, stored)
			at[[3]string{ns, snapshotter, name}] = len(all)
			all = append(all, place{ns, snapshotter, name, row.Parent, row.ID, row.Kind, 0})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range all {
		p := all[i]
		for all[i].depth = 0; p.parent != "" && all[i].depth < len(all); all[i].depth++ {
			parent, ok := at[[3]string{p.ns, p.snapshotter, p.parent}]
			if !ok {
				break
			}
			p = all[parent]
		}
	}
	slices.SortStableFunc(all, func(a, b place) int { return cmp.Compare(b.depth, a.depth) })
	return all, nil
}

// directories compares rows and directories of snapshots. Rows of a snapshotter
// that is not there are left alone.
func (c *check) directories() error {
	all, err := c.places()
	if err != nil {
		return err
	}
	onDisk := map[string]map[snapshots.ID]bool{}
	for name, d := range c.db.drivers {
		onDisk[name] = map[snapshots.ID]bool{}
		for id, err := range d.IDs(c.ctx) {
			if err != nil {
				return err
			}
			onDisk[name][id] = true
		}
	}
	for _, p := range all {
		d := c.db.drivers[p.snapshotter]
		if d == nil {
			continue
		}
		if !onDisk[p.snapshotter][p.id] {
			if c.db.hasDirectory(p.snapshotter, p.id) {
				c.broken(c.mendDirectory(p), "snapshot", p.ns, p.name, "its directory %s of %s is not there", p.id, p.snapshotter)
			}
		} else if err := d.intact(c.ctx, p.id, p.kind); err != nil && c.db.hasDirectory(p.snapshotter, p.id) {
			c.broken(c.mendDirectory(p), "snapshot", p.ns, p.name, "its directory %s of %s is not whole: %v", p.id, p.snapshotter, err)
		}
		if !c.handOut() {
			return nil
		}
	}
	for name, d := range c.db.drivers {
		orphans, err := c.orphans(d)
		if err != nil {
			return err
		}
		for _, id := range orphans {
			c.broken(c.removeDirectory(d, id), "snapshot", "", id.String(), "this directory of %s has no row", name)
		}
	}
	return nil
}

// orphanPause is between the two looks that make an orphan: who removes a row
// says a moment later that the directory goes.
const orphanPause = 100 * time.Millisecond

// orphans lists directories that have no row, and that nobody is about to remove.
func (c *check) orphans(d *driver) ([]snapshots.ID, error) {
	first, err := c.db.orphanDirectories(c.ctx, d)
	if err != nil || len(first) == 0 {
		return nil, err
	}
	timer := time.NewTimer(orphanPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
	second, err := c.db.orphanDirectories(c.ctx, d)
	return slices.DeleteFunc(second, func(id snapshots.ID) bool { return !slices.Contains(first, id) }), err
}

// intact tells what is missing of a directory, as far as the driver can tell.
func (d *driver) intact(ctx context.Context, id snapshots.ID, kind snapshots.Kind) error {
	if can, ok := d.Driver.(intact); ok {
		return can.Intact(ctx, id, kind)
	}
	return nil
}

// strays looks for files and directories that are nothing of anybody's.
func (c *check) strays() error {
	type place struct {
		kind, what string
		keeper     any
	}
	all := []place{{"blob", "the content store", c.db.content}}
	for _, name := range c.db.Snapshotters() {
		if d := c.db.drivers[name]; d != nil { // else it keeps no directories of ours
			all = append(all, place{"snapshot", name, d.Driver})
		}
	}
	for _, p := range all {
		k, ok := p.keeper.(keeper)
		if !ok {
			continue
		}
		for name, err := range k.Strays(c.ctx) {
			if err != nil {
				return err
			}
			remove := func(ctx context.Context) (string, error) { return "removed", k.RemoveStray(ctx, name) }
			c.broken(remove, p.kind, "", name, "this name in the directory of %s is nothing of its own", p.what)
		}
	}
	return nil
}
