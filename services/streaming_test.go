package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/streaming/v1"
	"github.com/berthd/berth/api/services/streaming/v1/streaminggrpc"
	"github.com/berthd/berth/protobuf"
)

type clientStream = grpc.BidiStreamingClient[anypb.Any, anypb.Any]

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := protobuf.MarshalAny(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// openStream opens a stream, and gives the error that the daemon answers with.
func openStream(ctx context.Context, t *testing.T, d *daemon, id string) (clientStream, error) {
	t.Helper()
	s, err := streaminggrpc.NewStreamingClient(d).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(packed(t, &streaming.StreamInit{Id: id})); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err == nil && !protobuf.Is(m, &emptypb.Empty{}) {
		t.Errorf("stream %q was answered with %v", id, m)
	}
	return s, err
}

// mustStream opens a stream that can be opened.
func mustStream(ctx context.Context, t *testing.T, d *daemon, id string) clientStream {
	t.Helper()
	s, err := openStream(ctx, t, d, id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStreams(t *testing.T) {
	d := start(t)
	ctx, cancel := context.WithCancel(in(t, "ns"))
	defer cancel()
	mustStream(ctx, t, d, "a")
	for name, c := range map[string]struct {
		ctx  context.Context
		id   string
		want codes.Code
	}{
		"again":        {in(t, "ns"), "a", codes.AlreadyExists},
		"nothing":      {in(t, "ns"), "", codes.InvalidArgument},
		"long":         {in(t, "ns"), strings.Repeat("x", maxStreamID+1), codes.InvalidArgument},
		"no namespace": {t.Context(), "b", codes.FailedPrecondition},
		"no lease":     {in(t, "ns", leaseHeader, "none"), "b", codes.NotFound},
	} {
		if _, err := openStream(c.ctx, t, d, c.id); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// Ids are the namespace's own.
	mustStream(in(t, "other"), t, d, "a")
	// What its client lets go of is free again.
	cancel()
	for {
		if _, err := openStream(in(t, "ns"), t, d, "a"); err == nil {
			return
		} else if status.Code(err) != codes.AlreadyExists {
			t.Fatal(err)
		}
	}
}

func TestBadStreamInit(t *testing.T) {
	d := start(t)
	for name, m := range map[string]*anypb.Any{
		"type": packed(t, &emptypb.Empty{}), "damaged": {TypeUrl: "containerd.services.streaming.v1.StreamInit", Value: []byte{0xff}}, "empty": {},
	} {
		s, err := streaminggrpc.NewStreamingClient(d).Stream(in(t, "ns"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := streaminggrpc.NewStreamingClient(d).Stream(in(t, "ns"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no message: %v", err)
	}
}

// Streams that nobody has taken don't hold up the end of the daemon.
func TestStreamsEndWithTheDaemon(t *testing.T) {
	d := start(t)
	s := mustStream(in(t, "ns"), t, d, "a")
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

// There is room for so many streams and no more.
func TestTooManyStreams(t *testing.T) {
	s := newStreams(nil, t.Context())
	for i := range maxStreams {
		if err := s.add(&stream{key: streamKey{"ns", fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.add(&stream{key: streamKey{"ns", "more"}}); status.Code(wire(err)) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
}

// A stream is one call's alone.
func TestTakeStream(t *testing.T) {
	s := newStreams(nil, t.Context())
	st := &stream{key: streamKey{"ns", "a"}, ended: make(chan struct{})}
	if err := s.add(st); err != nil {
		t.Fatal(err)
	}
	_, err := s.take("ns", "b")
	_, elsewhere := s.take("other", "a")
	_, first := s.take("ns", "a")
	_, second := s.take("ns", "a")
	if status.Code(wire(err)) != codes.NotFound || status.Code(wire(elsewhere)) != codes.NotFound || first != nil || status.Code(wire(second)) != codes.FailedPrecondition {
		t.Errorf("taken: %v, %v, %v, %v", err, elsewhere, first, second)
	}
	// It ends once, for the first reason.
	st.end(io.ErrUnexpectedEOF)
	st.end(nil)
	if <-st.ended; st.cause != io.ErrUnexpectedEOF {
		t.Errorf("it ended with %v", st.cause)
	}
}

// The lease that owns a stream is asked for.
func TestStreamLease(t *testing.T) {
	d := start(t)
	ctx := in(t, "ns")
	if _, err := leasesgrpc.NewLeasesClient(d).Create(ctx, &leases.CreateRequest{Id: "l"}); err != nil {
		t.Fatal(err)
	}
	mustStream(in(t, "ns", leaseHeader, "l"), t, d, "a")
}
