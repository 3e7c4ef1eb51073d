package services

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/mounts/v1"
	"github.com/berthd/berth/api/services/mounts/v1/mountsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/metadata"
)

type mountService struct {
	mountsgrpc.UnimplementedMountsServer
	db *metadata.DB
}

func (s *mountService) Activate(ctx context.Context, r *api.ActivateRequest) (*api.ActivateResponse, error) {
	info, err := s.db.Mounts(anyScope(ctx)).Activate(ctx, r.GetName(), mountsFromWire(r.GetMounts()),
		metadata.ActivateOptions{Labels: r.GetLabels(), Temporary: r.GetTemporary()})
	if err != nil {
		return nil, err
	}
	return &api.ActivateResponse{Info: info}, nil
}

func (s *mountService) Deactivate(ctx context.Context, r *api.DeactivateRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.db.Mounts(anyScope(ctx)).Deactivate(ctx, r.GetName())
}

func (s *mountService) Info(ctx context.Context, r *api.InfoRequest) (*api.InfoResponse, error) {
	info, err := s.db.Mounts(anyScope(ctx)).Info(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: info}, nil
}

func (s *mountService) Update(ctx context.Context, r *api.UpdateRequest) (*api.UpdateResponse, error) {
	if r.GetInfo() == nil {
		return nil, missing("info")
	}
	info, err := s.db.Mounts(anyScope(ctx)).Update(ctx, r.GetInfo(), r.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateResponse{Info: info}, nil
}

func (s *mountService) List(r *api.ListRequest, stream grpc.ServerStreamingServer[api.ListMessage]) error {
	all, err := s.db.Mounts(anyScope(stream.Context())).List(stream.Context(), r.GetFilters()...)
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := stream.Send(&api.ListMessage{Info: info}); err != nil {
			return err
		}
	}
	return nil
}

// TaskMounts mounts root file systems in the name of tasks: what is mounted goes
// with the container's record at the latest.
type TaskMounts struct{ DB *metadata.DB }

// Activate implements runtime.Rootfs.
func (m TaskMounts) Activate(ctx context.Context, ns, id string, mounts []*types.Mount) ([]*types.Mount, error) {
	info, err := m.DB.Mounts(metadata.Scope{Namespace: ns}).Activate(ctx, id, mountsFromWire(mounts),
		metadata.ActivateOptions{Labels: map[string]string{labels.GCBackRefContainer: id}})
	return info.GetSystem(), err
}

// Deactivate implements runtime.Rootfs.
func (m TaskMounts) Deactivate(ctx context.Context, ns, id string) error {
	return m.DB.Mounts(metadata.Scope{Namespace: ns}).Deactivate(ctx, id)
}

func mountsToWire(mounts []mount.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

func mountsFromWire(mounts []*types.Mount) []mount.Mount {
	out := make([]mount.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, mount.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}
