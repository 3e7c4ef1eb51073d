// Package snapshottest owns the tests that every snapshots.Driver has to pass,
// with real mounts: they need root. It does not test rules, which are those of
// snapshots.Tree.
package snapshottest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

var ctx = context.Background()

// Rows is snapshots.Rows in a map.
type Rows map[string]snapshots.Row

// Get implements snapshots.Rows.
func (m Rows) Get(name string) (*snapshots.Row, error) {
	row, ok := m[name]
	if !ok {
		return nil, nil
	}
	return &row, nil
}

// Put implements snapshots.Rows.
func (m Rows) Put(row *snapshots.Row) error {
	m[row.Name] = *row
	return nil
}

// Delete implements snapshots.Rows.
func (m Rows) Delete(name string) error {
	delete(m, name)
	return nil
}

// HasChildren implements snapshots.Rows.
func (m Rows) HasChildren(name string) (bool, error) {
	for _, row := range m {
		if row.Parent == name {
			return true, nil
		}
	}
	return false, nil
}

// Store is a tree over a driver, as package metadata makes one, with its rows
// in memory.
type Store struct {
	Driver snapshots.Driver
	Tree   snapshots.Tree
	last   snapshots.ID
}

// NewStore gives an empty one.
func NewStore(d snapshots.Driver) *Store {
	rebase := slices.Contains(d.Capabilities(), "rebase")
	return &Store{Driver: d, Tree: snapshots.Tree{Rows: Rows{}, Rebase: rebase}}
}

// Create prepares or views a snapshot.
func (s *Store) Create(kind snapshots.Kind, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	parents, err := s.Tree.CheckCreate(key, parent, labels)
	if err != nil {
		return nil, err
	}
	s.last++
	row := snapshots.Row{ID: s.last, Kind: kind, Name: key, Parent: parent, Labels: labels, CreatedAt: time.Now()}
	o := snapshots.CreateOptions{Kind: kind, Labels: labels}
	if err := s.Driver.Create(ctx, row.ID, parents, o); err != nil {
		return nil, err
	}
	if err := s.Tree.Create(row, parents); err != nil {
		return nil, err
	}
	return s.Driver.Mounts(row.ID, parents, o)
}

// Mounts gives the mounts of a snapshot.
func (s *Store) Mounts(key string) ([]mount.Mount, error) {
	row, parents, err := s.Tree.Mountable(key)
	if err != nil {
		return nil, err
	}
	return s.Driver.Mounts(row.ID, parents, snapshots.CreateOptions{Kind: row.Kind, Labels: row.Labels})
}

// Commit commits a snapshot.
func (s *Store) Commit(name, key, parent string) error {
	row, err := s.Tree.CheckCommit(name, key, parent)
	if err != nil {
		return err
	}
	if err := s.Driver.Flush(ctx, row.ID); err != nil {
		return err
	}
	usage, err := s.Driver.Usage(ctx, row.ID)
	if err != nil {
		return err
	}
	_, err = s.Tree.Commit(key, parent, snapshots.Row{ID: row.ID, Name: name, Usage: usage, CreatedAt: time.Now()})
	return err
}

// Remove removes a snapshot.
func (s *Store) Remove(name string) error {
	row, err := s.Tree.Remove(name)
	if err != nil {
		return err
	}
	return s.Driver.Remove(ctx, row.ID)
}

// fixture is a store with a place to mount its snapshots.
type fixture struct {
	*Store
	t *testing.T
}

// newFixture opens a driver in an empty directory. What the test leaves mounted
// fails it.
func newFixture(t *testing.T, open Open) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	return &fixture{NewStore(open(t, filepath.Join(t.TempDir(), "root"))), t}
}

// prepare prepares key, or fails the test.
func (f *fixture) prepare(key, parent string) []mount.Mount {
	f.t.Helper()
	mounts, err := f.Create(snapshots.Active, key, parent, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return mounts
}

// view views key, or fails the test.
func (f *fixture) view(key, parent string) []mount.Mount {
	f.t.Helper()
	mounts, err := f.Create(snapshots.View, key, parent, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return mounts
}

// within mounts mounts and calls do with the place.
func (f *fixture) within(mounts []mount.Mount, do func(root string)) {
	f.t.Helper()
	root := f.t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		f.t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(root); err != nil {
			f.t.Error(err)
		}
	}()
	do(root)
}

// layer commits name on top of parent, changed by do.
func (f *fixture) layer(name, parent string, do func(root string)) {
	f.t.Helper()
	key := name + "-making"
	f.within(f.prepare(key, parent), do)
	if err := f.Commit(name, key, ""); err != nil {
		f.t.Fatal(err)
	}
}

// ids lists what the driver has on disk.
func (f *fixture) ids() []snapshots.ID {
	f.t.Helper()
	var ids []snapshots.ID
	for id, err := range f.Driver.IDs(ctx) {
		if err != nil {
			f.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
