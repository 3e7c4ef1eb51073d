package services

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata"
)

// checkpointBuffer is how much of a checkpoint is written at once, in bytes.
const checkpointBuffer = 1 << 20

// undoTime bounds the removal of what did not become a blob.
const undoTime = 10 * time.Second

// checkpoints are the blobs of one caller, as the runtime needs them.
type checkpoints struct{ blobs *metadata.Blobs }

// Put stores what write writes. The caller's lease keeps it.
func (c checkpoints) Put(ctx context.Context, mediaType string, write func(io.Writer) error) (_ *types.Descriptor, err error) {
	ref := "checkpoint-" + rand.Text()
	w, err := c.blobs.Writer(ctx, ref, content.Expect{})
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			if failed := c.blobs.Abort(undo, ref); !errdefs.IsNotFound(failed) {
				err = errors.Join(err, failed)
			}
		}
	}()
	buffered := bufio.NewWriterSize(w, checkpointBuffer)
	if err := write(buffered); err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	at, err := w.Status()
	if err != nil {
		return nil, err
	}
	d := &types.Descriptor{MediaType: mediaType, Digest: w.Digest().String(), Size: at.GetOffset()}
	if err := w.Commit(ctx, d.Size, digest.Digest(d.Digest), nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return d, nil
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
