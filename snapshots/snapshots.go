// Package snapshots owns the rules of layered directory trees: which snapshot
// may be made from, committed on top of, or removed before which other. Names
// and parents are rows of package metadata; a Driver makes the directories.
package snapshots

import (
	"context"
	"iter"
	"strconv"
	"time"

	"github.com/berthd/berth/internal/mount"
)

// Kind tells what may be done with a snapshot. Its numbers are those of the
// wire's containerd.services.snapshots.v1.Kind.
type Kind uint8

const (
	View      Kind = 1 // read-only, can't be committed
	Active    Kind = 2 // writable, can be committed
	Committed Kind = 3 // can be a parent, can't be mounted
)

// String gives the kind as filters spell it: "view", "active", "committed".
func (k Kind) String() string {
	switch k {
	case View:
		return "view"
	case Active:
		return "active"
	case Committed:
		return "committed"
	}
	return "unknown"
}

// Info describes a snapshot by name.
type Info struct {
	Name      string
	Parent    string
	Kind      Kind
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Usage is what one layer takes, without its parents.
type Usage struct {
	Size   int64 // bytes on disk; a file with several names counts once
	Inodes int64
}

// Snapshotter is what the wire speaks, within one namespace. Package metadata
// implements it over a Driver. Errors are of the kinds of containerd/errdefs;
// section 5.1 of the contract (docs/compatibility.md) says which.
type Snapshotter interface {
	Stat(ctx context.Context, key string) (Info, error)
	// Update replaces labels: all of them, or those that fields name as
	// "labels.KEY".
	Update(ctx context.Context, info Info, fields ...string) (Info, error)
	Usage(ctx context.Context, key string) (Usage, error)
	Mounts(ctx context.Context, key string) ([]mount.Mount, error)
	Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error)
	View(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error)
	// Commit makes the active snapshot key the committed snapshot name. A
	// parent that is not empty is taken on by a key that has none.
	Commit(ctx context.Context, name, key, parent string, labels map[string]string) error
	Remove(ctx context.Context, key string) error
	All(ctx context.Context, filters ...string) iter.Seq2[Info, error]
}

// ID numbers a snapshot within its driver. Numbers are never used twice.
type ID uint64

// String gives the number as drivers use it in directory names.
func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// CreateOptions is what a driver needs beyond the parents.
type CreateOptions struct {
	Kind   Kind              // View or Active
	Labels map[string]string // those that start with containerd.io/snapshot/
	Layer  bool              // a layer of an image is to be unpacked into it
}

// Driver is all that a file system has to know. It sees numbers, not names.
// Parents are given nearest first. All methods are safe for concurrent use on
// different ids.
type Driver interface {
	// Create makes the directories of a new snapshot. After an error nothing of
	// it is left.
	Create(ctx context.Context, id ID, parents []ID, o CreateOptions) error
	// Mounts tells how to mount a snapshot; it touches nothing.
	Mounts(id ID, parents []ID, o CreateOptions) ([]mount.Mount, error)
	// Flush returns once everything written into the snapshot is on disk.
	Flush(ctx context.Context, id ID) error
	// Remove removes the directories. That they are gone already is no error.
	Remove(ctx context.Context, id ID) error
	Usage(ctx context.Context, id ID) (Usage, error)
	// IDs lists what is on disk, whole or not, for the orphan sweep.
	IDs(ctx context.Context) iter.Seq2[ID, error]
	// Root is the directory that holds everything of the driver.
	Root() string
	// Capabilities are those that introspection reports, such as "remap-ids".
	Capabilities() []string
}
