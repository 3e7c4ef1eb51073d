package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/streaming/v1"
	"github.com/berthd/berth/protobuf"
)

// streamSet is the streams of one call, and what works on them.
type streamSet struct {
	c      *Client
	ctx    context.Context // of the call and all streams
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
}

func (c *Client) newStreamSet(ctx context.Context) *streamSet {
	s := &streamSet{c: c}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

type anyStream = grpc.BidiStreamingClient[anypb.Any, anypb.Any]

// serve opens a stream and calls do with it, in a goroutine of its own. The daemon
// knows the stream by the id. An error of do ends the call for that reason.
func (s *streamSet) serve(purpose string, do func(anyStream) error) (id string, err error) {
	id = purpose + "-" + rand.Text()
	stream, err := s.open(id)
	if err != nil {
		return "", fmt.Errorf("open the stream for %s: %w", purpose, err)
	}
	s.work.Go(func() {
		if err := do(stream); err != nil {
			s.cancel(err)
		}
	})
	return id, nil
}

func (s *streamSet) open(id string) (anyStream, error) {
	stream, err := s.c.Streaming().Stream(s.ctx)
	if err != nil {
		return nil, err
	}
	init, err := protobuf.MarshalAny(&streaming.StreamInit{Id: id})
	if err != nil {
		return nil, err
	}
	// io.EOF: the daemon has ended the stream, and Recv says why.
	if err := stream.Send(init); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	_, err = stream.Recv() // it is registered once this is here
	return stream, err
}

// end waits for the work on the streams, which the daemon ends with the call. Of a
// call that failed it ends them itself. It gives the error of the call, or what that
// was a consequence of.
func (s *streamSet) end(err error) error {
	if err != nil {
		s.cancel(err)
	}
	s.work.Wait()
	cause := context.Cause(s.ctx)
	s.cancel(nil)
	if cause != nil {
		return cause
	}
	return err
}

// receiveAs receives a message of one type, io.EOF at the end of the stream.
func receiveAs(stream anyStream, into proto.Message) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if !protobuf.Is(m, into) {
		return fmt.Errorf("the daemon sent a message of type %q where %s was due", m.GetTypeUrl(), into.ProtoReflect().Descriptor().FullName())
	}
	return proto.Unmarshal(m.GetValue(), into)
}
