package snapshots

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// RefLabel names the snapshot that a preparation is meant to become. If that
// exists already, the preparation is answered with AlreadyExists.
const RefLabel = "containerd.io/snapshot.ref"

// maxDepth bounds a chain of parents. Overlay ends at 500 layers; a longer
// chain can only be a ring, which no call makes.
const maxDepth = 4096

// Row is what is kept of one snapshot.
type Row struct {
	ID        ID // the driver's number, the same before and after a commit
	Kind      Kind
	Name      string // the key; after a commit the committed name
	Parent    string // name of the parent, "" without one
	Labels    map[string]string
	Usage     Usage  // of a committed one, measured at its commit
	Remote    string // its key at a snapshotter outside of the daemon; "" in a driver
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Info gives the row as callers see it.
func (r Row) Info() Info {
	return Info{
		Name: r.Name, Parent: r.Parent, Kind: r.Kind, Labels: maps.Clone(r.Labels),
		CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
}

// Rows holds the rows of one namespace and snapshotter, by name. Package
// metadata supplies them within a transaction.
type Rows interface {
	// Get gives a row that the caller may change; nil if there is none.
	Get(name string) (*Row, error)
	Put(row *Row) error
	// Delete removes a row that is there.
	Delete(name string) error
	// HasChildren tells whether any row names name as its parent.
	HasChildren(name string) (bool, error)
}

// Tree is the rules: what may become of which snapshot. It changes rows only,
// and none of them if it answers an error. The directories are the caller's
// affair, by the law of the order of writes (docs/adr/0002):
//
//	prepare  CheckCreate · Driver.Create              · Create
//	commit   CheckCommit · Driver.Flush, Driver.Usage · Commit
//	remove                                              Remove · Driver.Remove
//
// What stands right of the checks happens in one transaction. The checks need
// none that writes; Create and Commit check again, and answer Unavailable if
// what the directories were made from has changed in between.
type Tree struct {
	Rows Rows
	// Rebase says that a layer without a parent can take one on at its commit,
	// which not all drivers' layers can.
	Rebase bool
}

// Stat gives the row of name, or NotFound.
func (t Tree) Stat(name string) (*Row, error) {
	row, err := t.Rows.Get(name)
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
	}
	return row, nil
}

// CheckCreate tells whether key may be prepared or viewed on top of parent, and
// gives the numbers of its ancestors, nearest first.
//
// AlreadyExists: key is in use, or labels[RefLabel] names a snapshot. NotFound:
// parent is missing. InvalidArgument: parent is not committed, or key is empty.
func (t Tree) CheckCreate(key, parent string, labels map[string]string) ([]ID, error) {
	if key == "" {
		return nil, fmt.Errorf("snapshot without a key: %w", errdefs.ErrInvalidArgument)
	}
	if err := t.free(key); err != nil {
		return nil, err
	}
	if target := labels[RefLabel]; target != "" {
		if err := t.free(target); err != nil {
			return nil, fmt.Errorf("prepare %q: target %w", key, err)
		}
	}
	if err := t.checkParent(key, parent); err != nil {
		return nil, err
	}
	return t.chain(parent)
}

// Create adds the row of a new View or Active snapshot, whose directories were
// made on top of parents. Errors are those of CheckCreate, or Unavailable.
func (t Tree) Create(row Row, parents []ID) error {
	if row.Kind != View && row.Kind != Active {
		return fmt.Errorf("create snapshot %q of kind %s: %w", row.Name, row.Kind, errdefs.ErrInvalidArgument)
	}
	now, err := t.CheckCreate(row.Name, row.Parent, row.Labels)
	if err != nil {
		return err
	}
	if !slices.Equal(now, parents) {
		return fmt.Errorf("snapshot %q: its parent %q was replaced meanwhile: %w", row.Name, row.Parent, errdefs.ErrUnavailable)
	}
	row.UpdatedAt = row.CreatedAt
	return t.Rows.Put(&row)
}

// Ancestry gives the numbers of the committed snapshot of that name and its
// ancestors, nearest first. NotFound; FailedPrecondition if it is not committed.
func (t Tree) Ancestry(name string) ([]ID, error) {
	row, err := t.Stat(name)
	if err != nil {
		return nil, err
	}
	if row.Kind != Committed {
		return nil, fmt.Errorf("snapshot %q is %s, not committed: %w", name, row.Kind, errdefs.ErrFailedPrecondition)
	}
	return t.chain(name)
}

// Mountable gives the row of an active or viewed snapshot and its ancestors'
// numbers, nearest first. NotFound; FailedPrecondition for a committed one.
func (t Tree) Mountable(key string) (*Row, []ID, error) {
	row, err := t.Stat(key)
	if err != nil {
		return nil, nil, err
	}
	if row.Kind == Committed {
		return nil, nil, fmt.Errorf("snapshot %q is committed, it has no mounts: %w", key, errdefs.ErrFailedPrecondition)
	}
	parents, err := t.chain(row.Parent)
	return row, parents, err
}

// CheckCommit tells whether key may be committed as name, and gives its row. A
// parent that is not "" is what key has, or takes on if it has none.
//
// NotFound: key or parent is missing. FailedPrecondition: key is not active.
// AlreadyExists: name is in use. InvalidArgument: parent is not that of key, or
// not committed. Unimplemented: the driver's layers can't take on a parent.
func (t Tree) CheckCommit(name, key, parent string) (*Row, error) {
	if name == "" {
		return nil, fmt.Errorf("commit snapshot %q without a name: %w", key, errdefs.ErrInvalidArgument)
	}
	row, err := t.Stat(key)
	if err != nil {
		return nil, err
	}
	if row.Kind != Active {
		return nil, fmt.Errorf("commit snapshot %q: it is %s, not active: %w", key, row.Kind, errdefs.ErrFailedPrecondition)
	}
	if err := t.free(name); err != nil {
		return nil, fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	if parent == "" || parent == row.Parent {
		return row, nil
	}
	if row.Parent != "" {
		return nil, fmt.Errorf("commit snapshot %q on parent %q: it has parent %q: %w", key, parent, row.Parent, errdefs.ErrInvalidArgument)
	}
	if !t.Rebase {
		return nil, fmt.Errorf("commit snapshot %q on a parent it was not made from: %w", key, errdefs.ErrNotImplemented)
	}
	if err := t.checkParent(key, parent); err != nil {
		return nil, err
	}
	if _, err := t.chain(parent); err != nil {
		return nil, err
	}
	return row, nil
}

// Commit replaces the active snapshot key by the committed one named row.Name,
// with row's number, labels, usage and time; the number is that which was
// flushed. It gives the row as stored. Errors are those of CheckCommit, or
// Unavailable.
func (t Tree) Commit(key, parent string, row Row) (*Row, error) {
	active, err := t.CheckCommit(row.Name, key, parent)
	if err != nil {
		return nil, err
	}
	if active.ID != row.ID {
		return nil, fmt.Errorf("commit snapshot %q: it was replaced meanwhile: %w", key, errdefs.ErrUnavailable)
	}
	row.Kind = Committed
	row.UpdatedAt = row.CreatedAt
	row.Parent = active.Parent
	if row.Parent == "" {
		row.Parent = parent
	}
	if err := t.Rows.Delete(key); err != nil {
		return nil, err
	}
	return &row, t.Rows.Put(&row)
}

// Remove deletes the row of name and gives what it was: the caller removes the
// directories once the transaction stands. NotFound; FailedPrecondition while
// it has children.
func (t Tree) Remove(name string) (*Row, error) {
	row, err := t.Stat(name)
	if err != nil {
		return nil, err
	}
	has, err := t.Rows.HasChildren(name)
	if err != nil {
		return nil, err
	}
	if has {
		return nil, fmt.Errorf("remove snapshot %q: it has children: %w", name, errdefs.ErrFailedPrecondition)
	}
	return row, t.Rows.Delete(name)
}

// free answers AlreadyExists if name is in use.
func (t Tree) free(name string) error {
	row, err := t.Rows.Get(name)
	if err != nil {
		return err
	}
	if row != nil {
		return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	return nil
}

func (t Tree) checkParent(key, parent string) error {
	if parent == "" {
		return nil
	}
	row, err := t.Rows.Get(parent)
	switch {
	case err != nil:
		return err
	case row == nil:
		return fmt.Errorf("parent %q of snapshot %q: %w", parent, key, errdefs.ErrNotFound)
	case row.Kind != Committed:
		return fmt.Errorf("parent %q of snapshot %q is %s, not committed: %w", parent, key, row.Kind, errdefs.ErrInvalidArgument)
	}
	return nil
}

// chain gives the numbers from name upward; of "" none.
func (t Tree) chain(name string) ([]ID, error) {
	var ids []ID
	for name != "" {
		row, err := t.Rows.Get(name)
		if err != nil {
			return nil, err
		}
		if row == nil {
			return nil, fmt.Errorf("snapshot %q, an ancestor of others, has no row: %w", name, errdefs.ErrDataLoss)
		}
		if len(ids) == maxDepth {
			return nil, fmt.Errorf("snapshot %q has more than %d ancestors: %w", name, maxDepth, errdefs.ErrDataLoss)
		}
		ids = append(ids, row.ID)
		name = row.Parent
	}
	return ids, nil
}
