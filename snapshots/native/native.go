// Package native owns the snapshot driver that needs nothing of the kernel but
// bind mounts: every active snapshot is a full copy of its parent.
//
//	ROOT/snapshots/N/    the whole tree
//
// It is for file systems that overlay can't use, and to compare overlay with.
package native

import (
	"context"
	"fmt"
	"iter"
	"os"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// Driver implements snapshots.Driver.
type Driver struct{ dirs *snapshots.Dirs }

var _ snapshots.Driver = (*Driver)(nil)

// Open opens the driver; everything of it is in root.
func Open(root string) (*Driver, error) {
	dirs, err := snapshots.OpenDirs(root)
	if err != nil {
		return nil, fmt.Errorf("native: %w", err)
	}
	return &Driver{dirs}, nil
}

// Close lets go of the directory.
func (d *Driver) Close() error { return d.dirs.Close() }

// Root implements snapshots.Driver.
func (d *Driver) Root() string { return d.dirs.Root() }

// Capabilities implements snapshots.Driver. There is no rebase: a copy that was
// made of nothing can't show a parent's files.
func (d *Driver) Capabilities() []string { return nil }

// Create implements snapshots.Driver. A view of a parent shows the parent
// itself, so only active snapshots copy.
func (d *Driver) Create(ctx context.Context, id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) error {
	copied := len(parents) > 0 && o.Kind == snapshots.Active
	fill := func(dir string) error {
		if !copied {
			return os.Chmod(dir, 0o755)
		}
		if err := copyTree(ctx, d.dirs.Path(parents[0]), dir); err != nil {
			return err
		}
		return d.dirs.Flush()
	}
	return d.dirs.Create(ctx, id, fill)
}

// Mounts implements snapshots.Driver.
func (d *Driver) Mounts(id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) ([]mount.Mount, error) {
	source, access := id, "rw"
	switch o.Kind {
	case snapshots.Active:
	case snapshots.View:
		access = "ro"
		if len(parents) > 0 {
			source = parents[0]
		}
	default:
		return nil, fmt.Errorf("native: mounts of a %s snapshot: %w", o.Kind, errdefs.ErrFailedPrecondition)
	}
	return []mount.Mount{{Type: "bind", Source: d.dirs.Path(source), Options: []string{access, "rbind"}}}, nil
}

// Flush implements snapshots.Driver.
func (d *Driver) Flush(_ context.Context, id snapshots.ID) error {
	if _, err := os.Lstat(d.dirs.Path(id)); err != nil {
		return fmt.Errorf("native: flush snapshot %s: %w", id, err)
	}
	if err := d.dirs.Flush(); err != nil {
		return fmt.Errorf("native: flush snapshot %s: %w", id, err)
	}
	return nil
}

// Remove implements snapshots.Driver.
func (d *Driver) Remove(ctx context.Context, id snapshots.ID) error {
	return d.dirs.Remove(ctx, id)
}

// Usage implements snapshots.Driver: of the full copy.
func (d *Driver) Usage(ctx context.Context, id snapshots.ID) (snapshots.Usage, error) {
	return snapshots.Measure(ctx, d.dirs.Path(id))
}

// IDs implements snapshots.Driver.
func (d *Driver) IDs(ctx context.Context) iter.Seq2[snapshots.ID, error] {
	return d.dirs.IDs(ctx)
}
