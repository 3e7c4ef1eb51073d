package client

import (
	"context"
	"errors"
	"io"

	"github.com/berthd/berth/api/berth/logs/v1"
)

// PrepareLog makes the place for the output of a detached container and gives
// its address, for TaskOptions.LogURI.
func (c *Client) PrepareLog(ctx context.Context, container string) (string, error) {
	prepared, err := c.Logs().Prepare(ctx, &logs.PrepareRequest{ContainerId: container})
	if err != nil {
		return "", err
	}
	return prepared.GetUri(), nil
}

// ReadLog writes a container's log to w: all of it, or with tail not negative
// only the last lines; with follow also what comes, until the container's output
// ends. NotFound: the container has no log.
func (c *Client) ReadLog(ctx context.Context, container string, tail int64, follow bool, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream if w fails
	stream, err := c.Logs().Read(ctx, &logs.ReadRequest{ContainerId: container, Tail: tail, Follow: follow})
	if err != nil {
		return err
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return err
		}
	}
}
