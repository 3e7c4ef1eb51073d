package services

import (
	"context"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	"github.com/berthd/berth/metadata"
)

type sandboxStore struct {
	sandboxgrpc.UnimplementedStoreServer
	db *metadata.DB
}

func (s *sandboxStore) Create(ctx context.Context, r *sandbox.StoreCreateRequest) (*sandbox.StoreCreateResponse, error) {
	if r.GetSandbox() == nil {
		return nil, missing("sandbox")
	}
	row, err := s.db.Sandboxes(anyScope(ctx)).Create(ctx, r.GetSandbox())
	if err != nil {
		return nil, err
	}
	return &sandbox.StoreCreateResponse{Sandbox: row}, nil
}

func (s *sandboxStore) Update(ctx context.Context, r *sandbox.StoreUpdateRequest) (*sandbox.StoreUpdateResponse, error) {
	if r.GetSandbox() == nil {
		return nil, missing("sandbox")
	}
	row, err := s.db.Sandboxes(anyScope(ctx)).Update(ctx, r.GetSandbox(), r.GetFields()...)
	if err != nil {
		return nil, err
	}
	return &sandbox.StoreUpdateResponse{Sandbox: row}, nil
}

func (s *sandboxStore) Get(ctx context.Context, r *sandbox.StoreGetRequest) (*sandbox.StoreGetResponse, error) {
	row, err := s.db.Sandboxes(anyScope(ctx)).Get(ctx, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &sandbox.StoreGetResponse{Sandbox: row}, nil
}

func (s *sandboxStore) List(ctx context.Context, r *sandbox.StoreListRequest) (*sandbox.StoreListResponse, error) {
	rows, err := s.db.Sandboxes(anyScope(ctx)).List(ctx, r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	return &sandbox.StoreListResponse{List: rows}, nil
}

func (s *sandboxStore) Delete(ctx context.Context, r *sandbox.StoreDeleteRequest) (*sandbox.StoreDeleteResponse, error) {
	if err := s.db.Sandboxes(anyScope(ctx)).Delete(ctx, r.GetSandboxId()); err != nil {
		return nil, err
	}
	return &sandbox.StoreDeleteResponse{}, nil
}
