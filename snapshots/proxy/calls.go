package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/snapshots"
)

// Bounds of answers.
const (
	maxList   = 1 << 18 // snapshots in one list
	maxMounts = 1 << 10 // of one snapshot
)

// scoped is the snapshotter for calls on behalf of a namespace.
type scoped struct {
	client    *Client
	namespace string
}

func (s scoped) name() string { return s.client.config.Name }

// Stat implements snapshots.Snapshotter.
func (s scoped) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.call(ctx, fmt.Sprintf("stat %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.Stat(ctx, &api.StatSnapshotRequest{Snapshotter: s.name(), Key: key}, wait)
		if err == nil {
			info, err = fromWire(r.GetInfo())
		}
		return err
	})
	return info, err
}

// Update implements snapshots.Snapshotter.
func (s scoped) Update(ctx context.Context, given snapshots.Info, fields ...string) (info snapshots.Info, err error) {
	err = s.call(ctx, fmt.Sprintf("update %q", given.Name), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.Update(ctx, &api.UpdateSnapshotRequest{
			Snapshotter: s.name(), Info: &api.Info{Name: given.Name, Labels: given.Labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields},
		}, wait)
		if err == nil {
			info, err = fromWire(r.GetInfo())
		}
		return err
	})
	return info, err
}

// Usage implements snapshots.Snapshotter.
func (s scoped) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	err = s.call(ctx, fmt.Sprintf("usage of %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.Usage(ctx, &api.UsageRequest{Snapshotter: s.name(), Key: key}, wait)
		usage = snapshots.Usage{Size: max(0, r.GetSize()), Inodes: max(0, r.GetInodes())}
		return err
	})
	return usage, err
}

// Mounts implements snapshots.Snapshotter.
func (s scoped) Mounts(ctx context.Context, key string) (mounts []mount.Mount, err error) {
	err = s.call(ctx, fmt.Sprintf("mounts of %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.Mounts(ctx, &api.MountsRequest{Snapshotter: s.name(), Key: key}, wait)
		if err == nil {
			mounts, err = mountsFromWire(r.GetMounts())
		}
		return err
	})
	return mounts, err
}

// Prepare implements snapshots.Snapshotter.
func (s scoped) Prepare(ctx context.Context, key, parent string, labels map[string]string) (mounts []mount.Mount, err error) {
	err = s.call(ctx, fmt.Sprintf("prepare %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.Prepare(ctx, &api.PrepareSnapshotRequest{Snapshotter: s.name(), Key: key, Parent: parent, Labels: labels}, wait)
		if err == nil {
			mounts, err = mountsFromWire(r.GetMounts())
		}
		return err
	})
	return mounts, err
}

// View implements snapshots.Snapshotter.
func (s scoped) View(ctx context.Context, key, parent string, labels map[string]string) (mounts []mount.Mount, err error) {
	err = s.call(ctx, fmt.Sprintf("view %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		r, err := s.client.api.View(ctx, &api.ViewSnapshotRequest{Snapshotter: s.name(), Key: key, Parent: parent, Labels: labels}, wait)
		if err == nil {
			mounts, err = mountsFromWire(r.GetMounts())
		}
		return err
	})
	return mounts, err
}

// Commit implements snapshots.Snapshotter.
func (s scoped) Commit(ctx context.Context, name, key, parent string, labels map[string]string) error {
	return s.call(ctx, fmt.Sprintf("commit %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		_, err := s.client.api.Commit(ctx, &api.CommitSnapshotRequest{Snapshotter: s.name(), Name: name, Key: key, Parent: parent, Labels: labels}, wait)
		return err
	})
}

// Remove implements snapshots.Snapshotter.
func (s scoped) Remove(ctx context.Context, key string) error {
	return s.call(ctx, fmt.Sprintf("remove %q", key), func(ctx context.Context, wait grpc.CallOption) error {
		_, err := s.client.api.Remove(ctx, &api.RemoveSnapshotRequest{Snapshotter: s.name(), Key: key}, wait)
		return err
	})
}

// All implements snapshots.Snapshotter. The list is read while it is gone
// through, all within the time of one call.
func (s scoped) All(ctx context.Context, filters ...string) iter.Seq2[snapshots.Info, error] {
	return func(yield func(snapshots.Info, error) bool) {
		stopped := false
		err := s.call(ctx, "list", func(ctx context.Context, wait grpc.CallOption) (err error) {
			stopped, err = s.list(ctx, wait, filters, func(info snapshots.Info) bool { return yield(info, nil) })
			return err
		})
		if err != nil && !stopped {
			yield(snapshots.Info{}, err)
		}
	}
}

// list gives each snapshot to visit, and tells whether that wanted no more.
func (s scoped) list(ctx context.Context, wait grpc.CallOption, filters []string, visit func(snapshots.Info) bool) (stopped bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.api.List(ctx, &api.ListSnapshotsRequest{Snapshotter: s.name(), Filters: filters}, wait)
	if err != nil {
		return false, err
	}
	for count := 0; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for _, one := range m.GetInfo() {
			if count++; count > maxList {
				return false, fmt.Errorf("more than %d snapshots: %w", maxList, errdefs.ErrResourceExhausted)
			}
			info, err := fromWire(one)
			if err != nil {
				return false, err
			}
			if !visit(info) {
				return true, nil
			}
		}
	}
}

// fromWire reads what a program tells of a snapshot.
func fromWire(i *api.Info) (snapshots.Info, error) {
	kind := snapshots.Kind(i.GetKind())
	if i.GetName() == "" || kind != snapshots.View && kind != snapshots.Active && kind != snapshots.Committed {
		return snapshots.Info{}, fmt.Errorf("it tells of snapshot %q of kind %d, which is none: %w", i.GetName(), i.GetKind(), errdefs.ErrInternal)
	}
	return snapshots.Info{
		Name: i.GetName(), Parent: i.GetParent(), Kind: kind, Labels: i.GetLabels(),
		CreatedAt: protobuf.Time(i.GetCreatedAt()), UpdatedAt: protobuf.Time(i.GetUpdatedAt()),
	}, nil
}

func mountsFromWire(mounts []*types.Mount) ([]mount.Mount, error) {
	if len(mounts) > maxMounts {
		return nil, fmt.Errorf("it answers with %d mounts, more than %d: %w", len(mounts), maxMounts, errdefs.ErrInternal)
	}
	out := make([]mount.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out, nil
}
