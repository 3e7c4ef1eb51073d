package services

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/metadata"
)

// checkpoints are the blobs of one caller, as the runtime needs them.
type checkpoints struct{ blobs *metadata.Blobs }

// Put stores what write writes. The caller's lease keeps it.
func (c checkpoints) Put(ctx context.Context, mediaType string, write func(io.Writer) error) (*types.Descriptor, error) {
	d, size, err := storeBlob(ctx, c.blobs, "checkpoint-"+rand.Text(), write, nil)
	if err != nil {
		return nil, err
	}
	return &types.Descriptor{MediaType: mediaType, Digest: d.String(), Size: size}, nil
}

// Open opens a blob. Its size has to be what the descriptor says.
func (c checkpoints) Open(ctx context.Context, d *types.Descriptor) (io.ReadCloser, error) {
	r, err := c.blobs.Open(ctx, digest.Digest(d.GetDigest()))
	if err != nil {
		return nil, err
	}
	if r.Size() != d.GetSize() {
		err := fmt.Errorf("blob %s has %d bytes, and its descriptor says %d: %w", d.GetDigest(), r.Size(), d.GetSize(), errdefs.ErrInvalidArgument)
		return nil, errors.Join(err, r.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r, 0, r.Size()), r}, nil
}

// Checkpoint dumps a task.
func (s *taskService) Checkpoint(ctx context.Context, r *tasks.CheckpointTaskRequest) (*tasks.CheckpointTaskResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.db.Containers(sc).Get(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return s.tasks.Checkpoint(ctx, sc.Namespace, c, r, checkpoints{s.db.Blobs(sc)})
}
