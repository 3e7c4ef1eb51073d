package services

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/snapshots"
)

type snapshotService struct {
	snapshotsgrpc.UnimplementedSnapshotsServer
	db *metadata.DB
}

// in is the snapshotter that a request names, in the call's namespace.
func (s *snapshotService) in(ctx context.Context, snapshotter string) (*metadata.Snapshots, error) {
	return s.db.Snapshotter(anyScope(ctx), snapshotter)
}

func (s *snapshotService) Prepare(ctx context.Context, r *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Prepare(ctx, r.GetKey(), r.GetParent(), r.GetLabels())
	if err != nil {
		return nil, err
	}
	return &api.PrepareSnapshotResponse{Mounts: mountsToWire(mounts)}, nil
}

func (s *snapshotService) View(ctx context.Context, r *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	mounts, err := sn.View(ctx, r.GetKey(), r.GetParent(), r.GetLabels())
	if err != nil {
		return nil, err
	}
	return &api.ViewSnapshotResponse{Mounts: mountsToWire(mounts)}, nil
}

func (s *snapshotService) Mounts(ctx context.Context, r *api.MountsRequest) (*api.MountsResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Mounts(ctx, r.GetKey())
	if err != nil {
		return nil, err
	}
	return &api.MountsResponse{Mounts: mountsToWire(mounts)}, nil
}

func (s *snapshotService) Commit(ctx context.Context, r *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, sn.Commit(ctx, r.GetName(), r.GetKey(), r.GetParent(), r.GetLabels())
}

func (s *snapshotService) Remove(ctx context.Context, r *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, sn.Remove(ctx, r.GetKey())
}

func (s *snapshotService) Stat(ctx context.Context, r *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	info, err := sn.Stat(ctx, r.GetKey())
	if err != nil {
		return nil, err
	}
	return &api.StatSnapshotResponse{Info: snapshotToWire(info)}, nil
}

func (s *snapshotService) Update(ctx context.Context, r *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	if r.GetInfo() == nil {
		return nil, missing("info")
	}
	info, err := sn.Update(ctx, snapshots.Info{Name: r.GetInfo().GetName(), Labels: r.GetInfo().GetLabels()}, r.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateSnapshotResponse{Info: snapshotToWire(info)}, nil
}

func (s *snapshotService) List(r *api.ListSnapshotsRequest, stream grpc.ServerStreamingServer[api.ListSnapshotsResponse]) error {
	ctx := stream.Context()
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return err
	}
	var block []*api.Info
	for info, err := range sn.All(ctx, r.GetFilters()...) {
		if err != nil {
			return err
		}
		if block = append(block, snapshotToWire(info)); len(block) < listBlock {
			continue
		}
		if err := stream.Send(&api.ListSnapshotsResponse{Info: block}); err != nil {
			return err
		}
		block = nil
	}
	if len(block) == 0 {
		return nil
	}
	return stream.Send(&api.ListSnapshotsResponse{Info: block})
}

func (s *snapshotService) Usage(ctx context.Context, r *api.UsageRequest) (*api.UsageResponse, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	u, err := sn.Usage(ctx, r.GetKey())
	if err != nil {
		return nil, err
	}
	return &api.UsageResponse{Size: u.Size, Inodes: u.Inodes}, nil
}

// Cleanup is for snapshotters that are other programs. With the others there is
// nothing to do.
func (s *snapshotService) Cleanup(ctx context.Context, r *api.CleanupRequest) (*emptypb.Empty, error) {
	sn, err := s.in(ctx, r.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, sn.Cleanup(ctx)
}

func snapshotToWire(i snapshots.Info) *api.Info {
	return &api.Info{
		Name: i.Name, Parent: i.Parent, Kind: api.Kind(i.Kind), Labels: i.Labels,
		CreatedAt: protobuf.Timestamp(i.CreatedAt), UpdatedAt: protobuf.Timestamp(i.UpdatedAt),
	}
}
