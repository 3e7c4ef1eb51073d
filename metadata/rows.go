package metadata

import (
	"fmt"

	snapshotapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/snapshots"
)

// treeRows are the rows of one namespace and snapshotter within a transaction,
// as snapshots.Tree sees them. It keeps the index of children.
type treeRows struct {
	tx          *Tx
	ns          string
	snapshotter string
}

var _ snapshots.Rows = treeRows{}

func (r treeRows) key(name string) string { return path(r.snapshotter, name) }

// Get reads a row; nil if there is none.
func (r treeRows) Get(name string) (*snapshots.Row, error) {
	if !snapshotTable.Has(r.tx, r.ns, r.key(name)) {
		return nil, nil
	}
	stored, err := snapshotTable.Get(r.tx, r.ns, r.key(name))
	if err != nil {
		return nil, err
	}
	return treeRow(name, stored), nil
}

// treeRow turns a stored row into what the rules work on.
func treeRow(name string, stored *rows.Snapshot) *snapshots.Row {
	info := stored.GetInfo()
	return &snapshots.Row{
		ID: snapshots.ID(stored.Id), Kind: snapshots.Kind(info.GetKind()), Name: name, Parent: info.GetParent(),
		Labels: info.GetLabels(), Usage: snapshots.Usage{Size: stored.Size, Inodes: stored.Inodes}, Remote: stored.Remote,
		CreatedAt: protobuf.Time(info.GetCreatedAt()), UpdatedAt: protobuf.Time(info.GetUpdatedAt()),
	}
}

// Put adds or replaces a row.
func (r treeRows) Put(row *snapshots.Row) error {
	stored := &rows.Snapshot{
		Info: &snapshotapi.Info{
			Name: row.Name, Parent: row.Parent, Kind: snapshotapi.Kind(row.Kind), Labels: row.Labels,
			CreatedAt: protobuf.Timestamp(row.CreatedAt), UpdatedAt: protobuf.Timestamp(row.UpdatedAt),
		},
		Id: uint64(row.ID), Size: row.Usage.Size, Inodes: row.Usage.Inodes, Remote: row.Remote,
	}
	if err := r.tx.makeNamespace(r.ns); err != nil {
		return err
	}
	if row.Parent != "" {
		if err := r.tx.put(childrenBucket, r.child(row.Parent, row.Name), []byte{}); err != nil {
			return fmt.Errorf("snapshot %q: %w", short(row.Name), err)
		}
	}
	return snapshotTable.put(r.tx, r.ns, r.key(row.Name), stored)
}

// Delete removes a row that is there.
func (r treeRows) Delete(name string) error {
	row, err := r.Get(name)
	if err != nil {
		return err
	}
	if row == nil {
		return snapshotTable.notFound(name)
	}
	if row.Parent != "" {
		if err := r.tx.delete(childrenBucket, r.child(row.Parent, name)); err != nil {
			return fmt.Errorf("snapshot %q: %w", short(name), err)
		}
	}
	return snapshotTable.Delete(r.tx, r.ns, r.key(name))
}

// HasChildren tells whether any row names name as its parent.
func (r treeRows) HasChildren(name string) (bool, error) {
	for range r.tx.scan(childrenBucket, path(r.ns, r.snapshotter, name, "")) {
		return true, nil
	}
	return false, nil
}

func (r treeRows) child(parent, name string) []byte {
	return []byte(path(r.ns, r.snapshotter, parent, name))
}

// eachSnapshot gives the rows of all namespaces and snapshotters.
func (tx *Tx) eachSnapshot(visit func(ns, snapshotter string, row *snapshots.Row) error) error {
	for key, value := range tx.scan(snapshotTable.bucket, "") {
		ns, rest, _ := cut(string(key))
		snapshotter, name, _ := cut(rest)
		stored, err := snapshotTable.decode(ns, rest, value)
		if err != nil {
			return err
		}
		if err := visit(ns, snapshotter, treeRow(name, stored)); err != nil {
			return err
		}
	}
	return nil
}
