package services

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/berthd/berth/api/services/diff/v1"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

type diffService struct {
	diffgrpc.UnimplementedDiffServer
	db     *metadata.DB
	layers diff.Options // how they are applied
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
	o := s.layers
	o.SyncFS = r.GetSyncFs()
	if o.Payloads, err = payloads(r.GetPayloads()); err != nil {
		return nil, err
	}
	applied, err := diff.Apply(ctx, io.NewSectionReader(blob, 0, blob.Size()), r.GetDiff().GetMediaType(), mountsFromWire(r.GetMounts()), o)
	if err != nil {
		return nil, err
	}
	return &api.ApplyResponse{Applied: &types.Descriptor{
		MediaType: applied.MediaType, Digest: applied.DiffID.String(), Size: applied.Size,
	}}, nil
}

// payloads are what stream processors are told: each a message of any type.
func payloads(given map[string]*anypb.Any) (map[string][]byte, error) {
	out := make(map[string][]byte, len(given))
	for id, payload := range given {
		data, err := proto.Marshal(payload)
		if err != nil {
			return nil, fmt.Errorf("payload of stream processor %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
		}
		out[id] = data
	}
	return out, nil
}

// Diff makes a layer of what makes the right mounts differ from the left ones, and
// stores it in the namespace's content.
func (s *diffService) Diff(ctx context.Context, r *api.DiffRequest) (*api.DiffResponse, error) {
	if len(r.GetRight()) == 0 {
		return nil, missing("right")
	}
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	o := diff.MakeOptions{MediaType: r.GetMediaType()}
	if r.GetSourceDateEpoch() != nil {
		if err := r.GetSourceDateEpoch().CheckValid(); err != nil {
			return nil, fmt.Errorf("source_date_epoch: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		o.Epoch = r.GetSourceDateEpoch().AsTime()
	}
	ref := r.GetRef()
	if ref == "" {
		ref = "diff-" + rand.Text()
	}
	var made diff.Layer
	d, size, err := storeBlob(ctx, s.db.Blobs(sc), ref, func(w io.Writer) (err error) {
		made, err = diff.Make(ctx, w, mountsFromWire(r.GetLeft()), mountsFromWire(r.GetRight()), o)
		return err
	}, func() map[string]string {
		marks := maps.Clone(r.GetLabels())
		if made.Compressed {
			if marks == nil {
				marks = map[string]string{}
			}
			marks[labels.Uncompressed] = made.DiffID.String()
		}
		return marks
	})
	if err != nil {
		return nil, err
	}
	return &api.DiffResponse{Diff: &types.Descriptor{MediaType: made.MediaType, Digest: d.String(), Size: size}}, nil
}
