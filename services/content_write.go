package services

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/berthd/berth/api/services/content/v1"
	store "github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata"
)

type writeStream = grpc.BidiStreamingServer[content.WriteContentRequest, content.WriteContentResponse]

// write is one stream of Write: one writer and the one answer that each message
// changes and sends again.
type write struct {
	stream writeStream
	ref    string
	writer *metadata.Writer
	want   store.Expect
	offset int64
	answer content.WriteContentResponse
	in     writeMessage
}

// receive gives the next message, which is good until the one after it.
func (w *write) receive() (*content.WriteContentRequest, error) {
	if err := w.stream.RecvMsg(&w.in); err != nil {
		return nil, err
	}
	return &w.in.request, nil
}

// Write lets a client fill an ingest and commit it. A stream that ends without
// a commit keeps the ingest: a later one with the same ref goes on with it.
func (s *contentService) Write(stream writeStream) (err error) {
	w := &write{stream: stream}
	defer w.in.release()
	r, err := w.receive()
	if err != nil {
		return ended(err)
	}
	if r.GetRef() == "" {
		return fmt.Errorf("write content: first message has no ref: %w", errdefs.ErrInvalidArgument)
	}
	ctx := stream.Context()
	w.ref, w.want = r.GetRef(), store.Expect{Size: r.GetTotal(), Digest: digest.Digest(r.GetExpected())}
	if w.writer, err = s.db.Blobs(anyScope(ctx)).Writer(ctx, w.ref, w.want); err != nil {
		return err
	}
	defer func() {
		if closeErr := w.writer.Close(); err == nil {
			err = closeErr
		}
	}()
	status, err := w.writer.Status()
	if err != nil {
		return err
	}
	w.offset = status.GetOffset()
	for {
		if err := w.message(r); err != nil {
			return err
		}
		if err := stream.Send(&w.answer); err != nil {
			return err
		}
		if r.GetAction() == content.WriteAction_COMMIT {
			return nil
		}
		if r, err = w.receive(); err != nil {
			return ended(err)
		}
		if err := w.expect(r); err != nil {
			return err
		}
	}
}

// ended tells a client that closed its side from a stream that broke.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// expect takes what a later message says of the blob.
func (w *write) expect(r *content.WriteContentRequest) error {
	if r.GetExpected() == "" && r.GetTotal() <= 0 {
		return nil
	}
	if r.GetExpected() != "" {
		w.want.Digest = digest.Digest(r.GetExpected())
	}
	if r.GetTotal() > 0 {
		w.want.Size = r.GetTotal()
	}
	return w.writer.Expect(w.stream.Context(), w.want)
}

// message does what one message asks for and prepares its answer.
func (w *write) message(r *content.WriteContentRequest) error {
	switch r.GetAction() {
	case content.WriteAction_STAT:
		if err := w.stat(); err != nil {
			return err
		}
	case content.WriteAction_WRITE, content.WriteAction_COMMIT:
		if err := w.data(r.GetOffset(), r.GetData()); err != nil {
			return fmt.Errorf("write content ref %q: %w", w.ref, err)
		}
	default:
		return fmt.Errorf("write content ref %q: action %d: %w", w.ref, r.GetAction(), errdefs.ErrInvalidArgument)
	}
	w.answer.Action = r.GetAction()
	w.answer.Offset = w.offset
	w.answer.Digest = w.writer.Digest().String()
	if r.GetAction() != content.WriteAction_COMMIT {
		return nil
	}
	return w.writer.Commit(w.stream.Context(), w.want.Size, w.want.Digest, r.GetLabels())
}

func (w *write) stat() error {
	status, err := w.writer.Status()
	if err != nil {
		return err
	}
	w.answer.StartedAt, w.answer.UpdatedAt = status.GetStartedAt(), status.GetUpdatedAt()
	w.answer.Total = w.want.Size
	return nil
}

// data appends to the ingest. Offset 0 starts it anew; any other has to be
// where it stands.
func (w *write) data(offset int64, data []byte) error {
	if offset < 0 || offset > 0 && offset != w.offset {
		return fmt.Errorf("offset %d where %d is next: %w", offset, w.offset, errdefs.ErrOutOfRange)
	}
	if offset == 0 && w.offset > 0 {
		if err := w.writer.Truncate(0); err != nil {
			return err
		}
		w.offset = 0
	}
	if len(data) == 0 {
		return nil
	}
	n, err := w.writer.Write(data)
	w.offset += int64(n)
	return err
}
