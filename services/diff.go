package services

import (
	"context"
	"io"

	api "github.com/berthd/berth/api/services/diff/v1"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/metadata"
)

type diffService struct {
	diffgrpc.UnimplementedDiffServer
	db *metadata.DB
}

// Apply puts a layer of the namespace's content onto mounts and describes what
// the layer is uncompressed.
func (s *diffService) Apply(ctx context.Context, r *api.ApplyRequest) (_ *api.ApplyResponse, err error) {
	if r.GetDiff() == nil {
		return nil, missing("diff")
	}
	d, err := parseDigest(r.GetDiff().GetDigest())
	if err != nil {
		return nil, err
	}
	blob, err := s.db.Blobs(anyScope(ctx)).Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := blob.Close(); err == nil {
			err = closeErr
		}
	}()
	applied, err := diff.Apply(ctx, io.NewSectionReader(blob, 0, blob.Size()), r.GetDiff().GetMediaType(),
		mountsFromWire(r.GetMounts()), diff.Options{SyncFS: r.GetSyncFs()})
	if err != nil {
		return nil, err
	}
	return &api.ApplyResponse{Applied: &types.Descriptor{
		MediaType: applied.MediaType, Digest: applied.DiffID.String(), Size: applied.Size,
	}}, nil
}

func (s *diffService) Diff(context.Context, *api.DiffRequest) (*api.DiffResponse, error) {
	return nil, notServed("making a layer from mounts", "compare the directories on the client's side")
}
