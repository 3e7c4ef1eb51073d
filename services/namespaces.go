package services

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/metadata"
)

type namespaceService struct {
	namespacesgrpc.UnimplementedNamespacesServer
	db *metadata.DB
}

func (s *namespaceService) Create(ctx context.Context, r *namespaces.CreateNamespaceRequest) (*namespaces.CreateNamespaceResponse, error) {
	if r.GetNamespace() == nil {
		return nil, missing("namespace")
	}
	ns, err := s.db.Namespaces().Create(ctx, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	return &namespaces.CreateNamespaceResponse{Namespace: ns}, nil
}

func (s *namespaceService) Get(ctx context.Context, r *namespaces.GetNamespaceRequest) (*namespaces.GetNamespaceResponse, error) {
	ns, err := s.db.Namespaces().Get(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &namespaces.GetNamespaceResponse{Namespace: ns}, nil
}

func (s *namespaceService) List(ctx context.Context, _ *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	list, err := s.db.Namespaces().List(ctx)
	if err != nil {
		return nil, err
	}
	return &namespaces.ListNamespacesResponse{Namespaces: list}, nil
}

func (s *namespaceService) Update(ctx context.Context, r *namespaces.UpdateNamespaceRequest) (*namespaces.UpdateNamespaceResponse, error) {
	if r.GetNamespace() == nil {
		return nil, missing("namespace")
	}
	ns, err := s.db.Namespaces().Update(ctx, r.GetNamespace(), r.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &namespaces.UpdateNamespaceResponse{Namespace: ns}, nil
}

func (s *namespaceService) Delete(ctx context.Context, r *namespaces.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.db.Namespaces().Delete(ctx, r.GetName())
}
