package client

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/types"
)

// Subscribe gives what happens from now on, in all namespaces, as far as one of
// the filters matches it; without filters everything. It ends with ctx, or with
// an error.
func (c *Client) Subscribe(ctx context.Context, filters ...string) iter.Seq2[*types.Envelope, error] {
	return func(yield func(*types.Envelope, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.Events().Subscribe(ctx, &events.SubscribeRequest{Filters: filters})
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			envelope, err := stream.Recv()
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(envelope, nil) {
				return
			}
		}
	}
}
