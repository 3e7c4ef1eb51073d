package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

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

// WriteBlob stores data as a blob with the given labels. If the blob is there
// already, it gets the labels. Call it under a lease: nothing else keeps the blob
// yet.
func (c *Client) WriteBlob(ctx context.Context, data []byte, marks map[string]string) (digest.Digest, error) {
	d := digest.FromBytes(data)
	err := c.writeBlob(ctx, d, data, marks)
	if errdefs.IsAlreadyExists(err) {
		err = c.labelBlob(ctx, d, marks)
	}
	if err != nil {
		return "", fmt.Errorf("write blob %s: %w", d, err)
	}
	return d, nil
}

func (c *Client) writeBlob(ctx context.Context, d digest.Digest, data []byte, marks map[string]string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := c.Content().Write(ctx)
	if err != nil {
		return err
	}
	err = stream.Send(&content.WriteContentRequest{
		Action: content.WriteAction_COMMIT, Ref: "blob-" + rand.Text(), Total: int64(len(data)), Expected: d.String(),
		Data: data, Labels: marks,
	})
	if err != nil && !errors.Is(err, io.EOF) { // then the answer says why
		return err
	}
	_, err = stream.Recv()
	return err
}

// labelBlob sets labels of a blob and leaves its other ones alone.
func (c *Client) labelBlob(ctx context.Context, d digest.Digest, marks map[string]string) error {
	if len(marks) == 0 {
		return nil
	}
	mask := &fieldmaskpb.FieldMask{}
	for _, key := range slices.Sorted(maps.Keys(marks)) {
		mask.Paths = append(mask.Paths, "labels."+key)
	}
	_, err := c.Content().Update(ctx, &content.UpdateRequest{Info: &content.Info{Digest: d.String(), Labels: marks}, UpdateMask: mask})
	return err
}
