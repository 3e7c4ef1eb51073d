package services

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/metadata"
)

const (
	listBlock = 100       // objects in one message of a streamed list
	readChunk = 512 << 10 // bytes in one message of a read: the next is read while the last is sent
)

type contentService struct {
	contentgrpc.UnimplementedContentServer
	db *metadata.DB
}

func (s *contentService) Info(ctx context.Context, r *content.InfoRequest) (*content.InfoResponse, error) {
	d, err := parseDigest(r.GetDigest())
	if err != nil {
		return nil, err
	}
	info, err := s.db.Blobs(anyScope(ctx)).Info(ctx, d)
	if err != nil {
		return nil, err
	}
	return &content.InfoResponse{Info: info}, nil
}

func (s *contentService) Update(ctx context.Context, r *content.UpdateRequest) (*content.UpdateResponse, error) {
	if _, err := parseDigest(r.GetInfo().GetDigest()); err != nil {
		return nil, err
	}
	info, err := s.db.Blobs(anyScope(ctx)).Update(ctx, r.GetInfo(), r.GetUpdateMask().GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &content.UpdateResponse{Info: info}, nil
}

func (s *contentService) List(r *content.ListContentRequest, stream grpc.ServerStreamingServer[content.ListContentResponse]) error {
	ctx := stream.Context()
	list, err := s.db.Blobs(anyScope(ctx)).List(ctx, r.GetFilters()...)
	if err != nil {
		return err
	}
	for len(list) > 0 {
		n := min(listBlock, len(list))
		if err := stream.Send(&content.ListContentResponse{Info: list[:n]}); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (s *contentService) Delete(ctx context.Context, r *content.DeleteContentRequest) (*emptypb.Empty, error) {
	d, err := parseDigest(r.GetDigest())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.db.Blobs(anyScope(ctx)).Delete(ctx, d)
}

func (s *contentService) Status(ctx context.Context, r *content.StatusRequest) (*content.StatusResponse, error) {
	status, err := s.db.Blobs(anyScope(ctx)).Status(ctx, r.GetRef())
	if err != nil {
		return nil, err
	}
	return &content.StatusResponse{Status: status}, nil
}

func (s *contentService) ListStatuses(ctx context.Context, r *content.ListStatusesRequest) (*content.ListStatusesResponse, error) {
	list, err := s.db.Blobs(anyScope(ctx)).ListStatuses(ctx, r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	return &content.ListStatusesResponse{Statuses: list}, nil
}

func (s *contentService) Abort(ctx context.Context, r *content.AbortRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.db.Blobs(anyScope(ctx)).Abort(ctx, r.GetRef())
}

// Read streams a part of a blob. A negative offset reads as 0; a size that is
// not above 0 or goes beyond the end means to the end.
func (s *contentService) Read(r *content.ReadContentRequest, stream grpc.ServerStreamingServer[content.ReadContentResponse]) (err error) {
	d, err := parseDigest(r.GetDigest())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	blob, err := s.db.Blobs(anyScope(ctx)).Open(ctx, d)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := blob.Close(); err == nil {
			err = closeErr
		}
	}()
	offset := max(0, r.GetOffset())
	left := blob.Size() - offset
	if left < 0 {
		return fmt.Errorf("read content %s of %d bytes at offset %d: %w", d, blob.Size(), offset, errdefs.ErrOutOfRange)
	}
	if size := r.GetSize(); size > 0 {
		left = min(left, size)
	}
	return sendPart(blob, offset, left, stream.SendMsg)
}

func parseDigest(text string) (digest.Digest, error) {
	d, err := digest.Parse(text)
	if err != nil {
		return "", fmt.Errorf("digest %q: %s: %w", text, err, errdefs.ErrInvalidArgument)
	}
	return d, nil
}
