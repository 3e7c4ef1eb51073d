package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
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
	// A stream that was cut off, as it was waited for in vain, would not say so.
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "berthd is stopping") {
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
	if s.idle(st) {
		t.Error("a stream that is taken is taken for idle")
	}
	// It ends once, for the first reason.
	st.end(io.ErrUnexpectedEOF)
	st.end(nil)
	if <-st.ended; st.cause != io.ErrUnexpectedEOF {
		t.Errorf("it ended with %v", st.cause)
	}
}

// heldStream is the server's side of a stream that its client keeps open.
type heldStream struct {
	streamServer
	ctx   context.Context
	first *anypb.Any
	ready chan struct{} // closed once the client has its answer
}

func (h *heldStream) Context() context.Context  { return h.ctx }
func (h *heldStream) Recv() (*anypb.Any, error) { return h.first, nil }
func (h *heldStream) Send(*anypb.Any) error     { close(h.ready); return nil }

// A stream ends with the lease that owns it, and if there is none, when nobody has
// taken it for long.
func TestStreamsThatNobodyWants(t *testing.T) {
	d := start(t)
	for name, c := range map[string]struct {
		lease string
		idle  time.Duration
		taken bool
		end   bool
	}{
		"idle":         {"", time.Millisecond, false, true},
		"idle, leased": {"stays", time.Millisecond, false, false},
		"taken":        {"", time.Millisecond, true, false},
		"lease gone":   {"goes", time.Hour, true, true},
	} {
		if c.lease != "" {
			if _, err := leasesgrpc.NewLeasesClient(d).Create(in(t, "ns"), &leases.CreateRequest{Id: c.lease}); err != nil {
				t.Fatal(err)
			}
		}
		s := newStreams(d.db, t.Context())
		s.idleTime, s.lookTime = c.idle, time.Millisecond
		ctx, cancel := context.WithCancel(withScope(grpcmetadata.NewIncomingContext(t.Context(), grpcmetadata.Pairs(namespaceHeader, "ns", leaseHeader, c.lease))))
		h := &heldStream{ctx: ctx, first: packed(t, &streaming.StreamInit{Id: "a"}), ready: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- s.Stream(h) }()
		<-h.ready
		if c.taken {
			if _, err := s.take("ns", "a"); err != nil {
				t.Fatal(err)
			}
		}
		if c.lease == "goes" {
			if _, err := leasesgrpc.NewLeasesClient(d).Delete(in(t, "ns"), &leases.DeleteRequest{Id: c.lease}); err != nil {
				t.Fatal(err)
			}
		}
		if !c.end {
			cancel()
		}
		err := <-ended
		if got := status.Code(wire(err)); got != map[bool]codes.Code{true: codes.Aborted, false: codes.Canceled}[c.end] {
			t.Errorf("%s: ended with %v", name, err)
		}
		cancel()
		if len(s.open) > 0 {
			t.Errorf("%s: %d streams are left", name, len(s.open))
		}
	}
}
