package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/berthd/berth/api/berth/images/v1"
)

// importPart is how much of an archive goes into one message, in bytes; the
// daemon takes at most 1 MiB.
const importPart = 512 << 10

// Import sends an OCI layout or docker-archive tar, plain or compressed, to the
// daemon, which stores its images and unpacks them. progress, which may be nil,
// is told how far each object is. When Import returns early, a Read of archive
// that blocks is left behind.
func (c *Client) Import(ctx context.Context, archive io.Reader, o *images.ImportOptions, progress func(*images.Progress)) ([]*images.Imported, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := c.Importer().Import(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		// io.EOF: the daemon has ended the call, and its answer says why.
		if err := sendArchive(stream, archive, o); err != nil && !errors.Is(err, io.EOF) {
			cancel(err)
		}
	}()
	made, err := receive(stream, progress)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // of which the stream's error is a consequence
	}
	return made, err
}

type importStream = grpc.BidiStreamingClient[images.ImportRequest, images.ImportEvent]

// sendArchive sends the options, then the archive.
func sendArchive(stream importStream, archive io.Reader, o *images.ImportOptions) error {
	if err := stream.Send(&images.ImportRequest{Part: &images.ImportRequest_Options{Options: o}}); err != nil {
		return err
	}
	for {
		// A message may be in use after Send, so each has a buffer of its own.
		buffer := make([]byte, importPart)
		n, err := io.ReadFull(archive, buffer)
		if n > 0 {
			if err := stream.Send(&images.ImportRequest{Part: &images.ImportRequest_Data{Data: buffer[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return stream.CloseSend()
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
}

func receive(stream importStream, progress func(*images.Progress)) ([]*images.Imported, error) {
	var made []*images.Imported
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return made, nil
		}
		if err != nil {
			return made, err
		}
		if image := event.GetImage(); image != nil {
			made = append(made, image)
		} else if p := event.GetProgress(); p != nil && progress != nil {
			progress(p)
		}
	}
}
