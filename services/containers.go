package services

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/metadata"
)

type containerService struct {
	containersgrpc.UnimplementedContainersServer
	db *metadata.DB
	// deleted is told of a record that is gone, expect that one comes, which a
	// task often follows at once.
	deleted func(ctx context.Context, namespace, id string)
	expect  func()
}

func (s *containerService) Get(ctx context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	c, err := s.db.Containers(anyScope(ctx)).Get(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &containers.GetContainerResponse{Container: c}, nil
}

func (s *containerService) List(ctx context.Context, r *containers.ListContainersRequest) (*containers.ListContainersResponse, error) {
	list, err := s.db.Containers(anyScope(ctx)).List(ctx, r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	return &containers.ListContainersResponse{Containers: list}, nil
}

func (s *containerService) ListStream(r *containers.ListContainersRequest, stream grpc.ServerStreamingServer[containers.ListContainerMessage]) error {
	ctx := stream.Context()
	list, err := s.db.Containers(anyScope(ctx)).Stored(ctx, r.GetFilters()...)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := stream.SendMsg(storedContainer(c)); err != nil {
			return err
		}
	}
	return nil
}

func (s *containerService) Create(ctx context.Context, r *containers.CreateContainerRequest) (*containers.CreateContainerResponse, error) {
	if r.GetContainer() == nil {
		return nil, missing("container")
	}
	s.expect()
	c, err := s.db.Containers(anyScope(ctx)).Create(ctx, r.GetContainer())
	if err != nil {
		return nil, err
	}
	return &containers.CreateContainerResponse{Container: c}, nil
}

func (s *containerService) Update(ctx context.Context, r *containers.UpdateContainerRequest) (*containers.UpdateContainerResponse, error) {
	if r.GetContainer() == nil {
		return nil, missing("container")
	}
	c, err := s.db.Containers(anyScope(ctx)).Update(ctx, r.GetContainer(), r.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &containers.UpdateContainerResponse{Container: c}, nil
}

func (s *containerService) Delete(ctx context.Context, r *containers.DeleteContainerRequest) (*emptypb.Empty, error) {
	sc := anyScope(ctx)
	if err := s.db.Containers(sc).Delete(ctx, r.GetId()); err != nil {
		return nil, err
	}
	s.deleted(ctx, sc.Namespace, r.GetId())
	return &emptypb.Empty{}, nil
}
