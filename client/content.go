package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/content/v1"
)

// ReadBlob reads a whole blob of at most limit bytes and checks its digest.
func (c *Client) ReadBlob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream if it is left early
	stream, err := c.Content().Read(ctx, &content.ReadContentRequest{Digest: d.String()})
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	var data []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read blob %s: %w", d, err)
		}
		if int64(len(data)+len(part.GetData())) > limit {
			return nil, fmt.Errorf("read blob %s: larger than %d bytes: %w", d, limit, errdefs.ErrOutOfRange)
		}
		data = append(data, part.GetData()...)
	}
	if d.Algorithm().FromBytes(data) != d {
		return nil, fmt.Errorf("read blob %s: its bytes have another digest: %w", d, errdefs.ErrDataLoss)
	}
	return data, nil
}
