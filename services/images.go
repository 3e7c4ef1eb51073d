package services

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/metadata"
)

type imageService struct {
	imagesgrpc.UnimplementedImagesServer
	db      *metadata.DB
	collect collector
}

// collector runs a collection that starts after the call, and waits for it.
type collector func(ctx context.Context) (metadata.Report, error)

func (s *imageService) Get(ctx context.Context, r *images.GetImageRequest) (*images.GetImageResponse, error) {
	i, err := s.db.Images(anyScope(ctx)).Get(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &images.GetImageResponse{Image: i}, nil
}

func (s *imageService) List(ctx context.Context, r *images.ListImagesRequest) (*images.ListImagesResponse, error) {
	list, err := s.db.Images(anyScope(ctx)).List(ctx, r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	return &images.ListImagesResponse{Images: list}, nil
}

func (s *imageService) Create(ctx context.Context, r *images.CreateImageRequest) (*images.CreateImageResponse, error) {
	if r.GetImage() == nil {
		return nil, missing("image")
	}
	i, err := s.db.Images(anyScope(ctx)).Create(ctx, r.GetImage(), r.GetSourceDateEpoch())
	if err != nil {
		return nil, err
	}
	return &images.CreateImageResponse{Image: i}, nil
}

func (s *imageService) Update(ctx context.Context, r *images.UpdateImageRequest) (*images.UpdateImageResponse, error) {
	if r.GetImage() == nil {
		return nil, missing("image")
	}
	i, err := s.db.Images(anyScope(ctx)).Update(ctx, r.GetImage(), r.GetUpdateMask().GetPaths(), r.GetSourceDateEpoch())
	if err != nil {
		return nil, err
	}
	return &images.UpdateImageResponse{Image: i}, nil
}

func (s *imageService) Delete(ctx context.Context, r *images.DeleteImageRequest) (*emptypb.Empty, error) {
	if err := s.db.Images(anyScope(ctx)).Delete(ctx, r.GetName(), r.GetTarget()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.collect.ifSync(ctx, r.GetSync())
}

// ifSync collects if the client asked for it.
func (c collector) ifSync(ctx context.Context, sync bool) error {
	if !sync {
		return nil
	}
	_, err := c(ctx)
	return err
}
