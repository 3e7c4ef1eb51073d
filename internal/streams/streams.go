package streams

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/protobuf"
)

const (
	// Window is how many bytes a reader grants at a time, when it has granted
	// less than that beyond what it has read.
	Window = 64 << 10
	// MaxData is how many bytes a message has at most.
	MaxData = 32 << 10
)

// Stream carries messages both ways. One goroutine may send while another
// receives.
type Stream interface {
	Send(*anypb.Any) error
	// Recv gives io.EOF when the other side is done.
	Recv() (*anypb.Any, error)
}

// Reader reads the bytes that a Writer on the other side sends. The end of the
// stream is the end of the bytes.
type Reader struct {
	stream Stream
	window int64  // granted and not yet received
	rest   []byte // received and not yet read
	mute   bool   // grants can't be sent any more
	err    error  // sticky
}

// NewReader reads from a stream, which nobody else may receive from.
func NewReader(s Stream) *Reader { return &Reader{stream: s} }

// Read is of io.Reader. InvalidArgument: the other side breaks the rules.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.next()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next grants what is due and receives a message.
func (r *Reader) next() error {
	if r.window < Window && !r.mute {
		grant, err := protobuf.MarshalAny(&transfer.WindowUpdate{Update: Window})
		if err != nil {
			return err
		}
		// The other side may be done and gone, and what it sent before still be
		// on its way: so Recv has the last word.
		if r.stream.Send(grant) == nil {
			r.window += Window
		} else {
			r.mute = true
		}
	}
	m, err := r.stream.Recv()
	if err != nil {
		return err
	}
	data := &transfer.Data{}
	if err := unpack(m, data); err != nil {
		return err
	}
	if r.window -= int64(len(data.GetData())); r.window < 0 {
		return fmt.Errorf("stream: more bytes came than were granted: %w", errdefs.ErrInvalidArgument)
	}
	r.rest = data.GetData()
	return nil
}

// unpack takes a message out of its Any, if it is of that type.
func unpack(m *anypb.Any, into proto.Message) error {
	if !protobuf.Is(m, into) {
		return fmt.Errorf("stream: a message of type %.100q came where %s was due: %w",
			m.GetTypeUrl(), into.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(m.GetValue(), into); err != nil {
		return fmt.Errorf("stream: a message can't be read: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Writer sends bytes to a Reader on the other side.
type Writer struct {
	stream Stream
	window int64 // granted and not yet sent
	err    error // sticky
}

// NewWriter writes to a stream, which nobody else may use.
func NewWriter(s Stream) *Writer { return &Writer{stream: s} }

// ErrGone says that whoever read has stopped.
var ErrGone = fmt.Errorf("stream: its reader has closed it: %w", errdefs.ErrAborted)

// Write is of io.Writer. It blocks until the reader has room for the bytes.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if err := w.await(1); err != nil {
			return n, err
		}
		part := p[:min(int64(len(p)), MaxData, w.window)]
		m, err := protobuf.MarshalAny(&transfer.Data{Data: part})
		if err == nil {
			err = w.stream.Send(m)
		}
		if err != nil {
			w.err = gone(err)
			return n, w.err
		}
		w.window -= int64(len(part))
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

// Settle waits until the reader has granted a whole window beyond what was
// written. Readers grant one when they have less than one left, so this one has
// then taken all but the last Window bytes.
func (w *Writer) Settle() error { return w.await(Window) }

// await receives grants until there are so many bytes left of them.
func (w *Writer) await(n int64) error {
	for w.err == nil && w.window < n {
		m, err := w.stream.Recv()
		if err != nil {
			w.err = gone(err)
			break
		}
		grant := &transfer.WindowUpdate{}
		if w.err = unpack(m, grant); w.err != nil {
			break
		}
		if grant.GetUpdate() < 0 {
			w.err = fmt.Errorf("stream: a window of %d bytes was granted: %w", grant.GetUpdate(), errdefs.ErrInvalidArgument)
			break
		}
		w.window += int64(grant.GetUpdate())
	}
	return w.err
}

// gone says in words that the other side has closed the stream.
func gone(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrGone
	}
	return err
}
