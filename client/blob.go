package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
)

// blobPart is how much of a blob goes into one message, in bytes.
const blobPart = 1 << 20

// blobReader reads a blob of the daemon's as it comes.
type blobReader struct {
	stream contentgrpc.Content_ReadClient
	cancel context.CancelFunc
	rest   []byte
}

// openBlob reads a blob from its beginning. Whether what it gives has the digest is
// the caller's to see.
func (c *Client) openBlob(ctx context.Context, d digest.Digest) (*blobReader, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.Content().Read(ctx, &content.ReadContentRequest{Digest: d.String()})
	if err != nil {
		cancel()
		return nil, err
	}
	return &blobReader{stream: stream, cancel: cancel}, nil
}

func (r *blobReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		part, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = part.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *blobReader) Close() error {
	r.cancel()
	return nil
}

// blobWriter writes a blob whose digest is not known before its end.
type blobWriter struct {
	c      *Client
	ref    string
	stream contentgrpc.Content_WriteClient
	undo   context.Context // for the calls after cancel
	cancel context.CancelFunc
	offset int64
	part   []byte // not yet sent
}

// createBlob begins a blob, which Commit ends. Close must follow, and drops what was
// not committed. Call it under a lease.
func (c *Client) createBlob(ctx context.Context) (*blobWriter, error) {
	undo := ctx
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.Content().Write(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &blobWriter{c: c, undo: undo, ref: "blob-" + rand.Text(), stream: stream, cancel: cancel, part: make([]byte, 0, blobPart)}, nil
}

func (w *blobWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		room := min(len(p), cap(w.part)-len(w.part))
		w.part = append(w.part, p[:room]...)
		n, p = n+room, p[room:]
		if len(w.part) == cap(w.part) {
			if err := w.send(&content.WriteContentRequest{Action: content.WriteAction_WRITE}); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// send sends what was written, and waits until the daemon has it.
func (w *blobWriter) send(m *content.WriteContentRequest) error {
	m.Ref, m.Offset, m.Data = w.ref, w.offset, w.part
	if err := w.stream.Send(m); err != nil && !errors.Is(err, io.EOF) { // else the answer says why
		return err
	}
	answer, err := w.stream.Recv()
	if err != nil {
		return err
	}
	w.offset += int64(len(w.part))
	if answer.GetOffset() != w.offset {
		return fmt.Errorf("the daemon has %d bytes of %d: %w", answer.GetOffset(), w.offset, errdefs.ErrDataLoss)
	}
	w.part = make([]byte, 0, blobPart) // a message may be in use after Send
	return nil
}

// Commit makes the blob, unless it is there already. It gets the labels either way.
func (w *blobWriter) Commit(ctx context.Context, d digest.Digest, marks map[string]string) error {
	total := w.offset + int64(len(w.part))
	err := w.send(&content.WriteContentRequest{Action: content.WriteAction_COMMIT, Total: total, Expected: d.String(), Labels: marks})
	if errdefs.IsAlreadyExists(err) {
		err = w.c.labelBlob(ctx, d, marks)
	}
	if err == nil {
		w.ref = ""
	}
	return err
}

// Close ends the writing.
func (w *blobWriter) Close() error {
	w.cancel()
	if w.ref == "" {
		return nil
	}
	ctx, cancel := cleanupContext(w.undo)
	defer cancel()
	_, err := w.c.Content().Abort(ctx, &content.AbortRequest{Ref: w.ref})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
