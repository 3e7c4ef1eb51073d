package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/mount"
)

// Change is what a container did to a file of its image.
type Change struct {
	Kind string `json:"kind"` // A: added, C: changed, D: deleted with all in it
	Path string `json:"path"`
}

// Changes lists, by path, what is different in a container from the image that it
// was made from. Volumes are not part of it. The files are read here, so it takes a
// client on the daemon's machine that may. Call it under a lease.
// FailedPrecondition: the container has no snapshot.
func (c *Client) Changes(ctx context.Context, id string) (list []Change, err error) {
	container, err := c.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	record := container.Record
	if record.GetSnapshotKey() == "" {
		return nil, fmt.Errorf("container %q has no snapshot to compare: %w", id, errdefs.ErrFailedPrecondition)
	}
	stat, err := c.Snapshots().Stat(ctx, &snapshots.StatSnapshotRequest{Snapshotter: record.GetSnapshotter(), Key: record.GetSnapshotKey()})
	if err != nil {
		return nil, fmt.Errorf("snapshot of container %q: %w", id, err)
	}
	below, done, err := c.view(ctx, record.GetSnapshotter(), stat.GetInfo().GetParent())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	above, err := container.mounts(ctx)
	if err != nil {
		return nil, err
	}
	err = diff.Changes(ctx, mountsOf(below), mountsOf(above), func(change archive.Change) error {
		list = append(list, Change{Kind: change.Kind.String(), Path: change.Path})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare container %q with its image: %w", id, err)
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// mountsOf decodes mounts.
func mountsOf(mounts []*types.Mount) []mount.Mount {
	list := make([]mount.Mount, 0, len(mounts))
	for _, m := range mounts {
		list = append(list, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return list
}
