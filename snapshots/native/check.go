package native

import (
	"context"
	"iter"

	"github.com/berthd/berth/snapshots"
)

// Strays lists what is in the driver's directory and is no snapshot.
func (d *Driver) Strays(ctx context.Context) iter.Seq2[string, error] { return d.dirs.Strays(ctx) }

// RemoveStray removes what Strays has listed.
func (d *Driver) RemoveStray(ctx context.Context, name string) error {
	return d.dirs.RemoveStray(ctx, name)
}

// Intact tells whether the directory of a snapshot is missing.
func (d *Driver) Intact(_ context.Context, id snapshots.ID, _ snapshots.Kind) error {
	return d.dirs.Intact(id)
}
