package services

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/metadata"
)

type leaseService struct {
	leasesgrpc.UnimplementedLeasesServer
	db      *metadata.DB
	collect collector
}

func (s *leaseService) Create(ctx context.Context, r *leases.CreateRequest) (*leases.CreateResponse, error) {
	l, err := s.db.Leases(anyScope(ctx)).Create(ctx, r.GetId(), r.GetLabels())
	if err != nil {
		return nil, err
	}
	return &leases.CreateResponse{Lease: l}, nil
}

func (s *leaseService) Delete(ctx context.Context, r *leases.DeleteRequest) (*emptypb.Empty, error) {
	if err := s.db.Leases(anyScope(ctx)).Delete(ctx, r.GetId()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.collect.ifSync(ctx, r.GetSync())
}

func (s *leaseService) List(ctx context.Context, r *leases.ListRequest) (*leases.ListResponse, error) {
	list, err := s.db.Leases(anyScope(ctx)).List(ctx, r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	return &leases.ListResponse{Leases: list}, nil
}

func (s *leaseService) AddResource(ctx context.Context, r *leases.AddResourceRequest) (*emptypb.Empty, error) {
	if r.GetResource() == nil {
		return nil, missing("resource")
	}
	return &emptypb.Empty{}, s.db.Leases(anyScope(ctx)).AddResource(ctx, r.GetId(), r.GetResource())
}

func (s *leaseService) DeleteResource(ctx context.Context, r *leases.DeleteResourceRequest) (*emptypb.Empty, error) {
	if r.GetResource() == nil {
		return nil, missing("resource")
	}
	return &emptypb.Empty{}, s.db.Leases(anyScope(ctx)).DeleteResource(ctx, r.GetId(), r.GetResource())
}

func (s *leaseService) ListResources(ctx context.Context, r *leases.ListResourcesRequest) (*leases.ListResourcesResponse, error) {
	list, err := s.db.Leases(anyScope(ctx)).ListResources(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return &leases.ListResourcesResponse{Resources: list}, nil
}
