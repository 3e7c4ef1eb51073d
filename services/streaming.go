package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/streaming/v1"
	"github.com/berthd/berth/api/services/streaming/v1/streaminggrpc"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/protobuf"
)

const (
	// maxStreams bounds the streams that are open at once, of all namespaces.
	maxStreams = 4096
	// maxStreamID is how many bytes the id of a stream may have.
	maxStreamID = 1024
	// streamInitTime is how long a client may take to say how its stream is called.
	streamInitTime = time.Minute
	// streamIdleTime is the default of streams.idleTime.
	streamIdleTime = 10 * time.Minute
	// streamLookTime is the default of streams.lookTime.
	streamLookTime = 30 * time.Second
)

// streams is the streams that clients have opened, for what works for them in the
// daemon. A stream that nobody has taken ends when the daemon drains; one that is
// taken ends with whatever took it.
type streams struct {
	streaminggrpc.UnimplementedStreamingServer
	db       *metadata.DB
	running  context.Context // ends when the daemon drains
	idleTime time.Duration   // that a stream stays which nobody takes, unless a lease owns it
	lookTime time.Duration   // between two looks at that and at the lease

	// mu guards open, and taken of those in it.
	mu   sync.Mutex
	open map[streamKey]*stream
}

type streamKey struct{ namespace, id string }

type streamServer = grpc.BidiStreamingServer[anypb.Any, anypb.Any]

// stream is one that a client has opened.
type stream struct {
	key    streamKey
	server streamServer
	taken  bool // guarded by streams.mu

	once  sync.Once
	ended chan struct{} // closed by end
	cause error         // why; set before ended is closed
}

func newStreams(db *metadata.DB, running context.Context) *streams {
	return &streams{db: db, running: running, idleTime: streamIdleTime, lookTime: streamLookTime, open: map[streamKey]*stream{}}
}

// Stream registers a stream and keeps it open for whoever takes it.
func (s *streams) Stream(server streamServer) error {
	ctx := server.Context()
	sc, err := scope(ctx)
	if err != nil {
		return err
	}
	id, err := streamID(server)
	if err != nil {
		return err
	}
	if err := s.leased(ctx, sc); err != nil {
		return fmt.Errorf("stream %.100q: %w", id, err)
	}
	st := &stream{key: streamKey{sc.Namespace, id}, server: server, ended: make(chan struct{})}
	if err := s.add(st); err != nil {
		return err
	}
	defer s.drop(st)
	ready, err := protobuf.MarshalAny(&emptypb.Empty{})
	if err != nil {
		return err
	}
	if err := server.Send(ready); err != nil {
		return err
	}
	return s.keep(ctx, sc, st)
}

// streamID receives the first message of a stream, which names it.
func streamID(server streamServer) (string, error) {
	type answer struct {
		m   *anypb.Any
		err error
	}
	first := make(chan answer, 1)
	go func() {
		m, err := server.Recv() // ends with the call, at the latest
		first <- answer{m, err}
	}()
	timer := time.NewTimer(streamInitTime)
	defer timer.Stop()
	select {
	case <-timer.C:
		return "", fmt.Errorf("stream: no StreamInit came for %s: %w", streamInitTime, errdefs.ErrAborted)
	case a := <-first:
		if errors.Is(a.err, io.EOF) {
			return "", missing("StreamInit")
		}
		if a.err != nil {
			return "", a.err
		}
		var init streaming.StreamInit
		if !protobuf.Is(a.m, &init) {
			return "", fmt.Errorf("stream: the first message is a %.100q and not a StreamInit: %w", a.m.GetTypeUrl(), errdefs.ErrInvalidArgument)
		}
		if err := proto.Unmarshal(a.m.GetValue(), &init); err != nil {
			return "", fmt.Errorf("stream: the StreamInit can't be read: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		if id := init.GetId(); id != "" && len(id) <= maxStreamID {
			return id, nil
		}
		return "", fmt.Errorf("stream: its id must have 1 to %d bytes: %w", maxStreamID, errdefs.ErrInvalidArgument)
	}
}

// leased tells whether the lease that is to own a stream exists: NotFound.
func (s *streams) leased(ctx context.Context, sc metadata.Scope) error {
	if sc.Lease == "" {
		return nil
	}
	_, err := s.db.Leases(sc).ListResources(ctx, sc.Lease)
	return err
}

func (s *streams) add(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[st.key]; ok {
		return fmt.Errorf("stream %.100q: %w", st.key.id, errdefs.ErrAlreadyExists)
	}
	if len(s.open) >= maxStreams {
		return fmt.Errorf("stream %.100q: %d are open already: %w", st.key.id, maxStreams, errdefs.ErrResourceExhausted)
	}
	s.open[st.key] = st
	return nil
}

func (s *streams) drop(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st.key)
}

// take gives a stream to one who alone uses it from now on, and has to end it:
// NotFound, FailedPrecondition if it is taken.
func (s *streams) take(namespace, id string) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.open[streamKey{namespace, id}]
	if !ok {
		return nil, fmt.Errorf("stream %.100q: open it before the call that names it: %w", id, errdefs.ErrNotFound)
	}
	if st.taken {
		return nil, fmt.Errorf("stream %.100q: another call has it: %w", id, errdefs.ErrFailedPrecondition)
	}
	st.taken = true
	return st, nil
}

// idle tells whether nobody has taken a stream. If so it is nobody's any more.
func (s *streams) idle(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.taken {
		return false
	}
	delete(s.open, st.key)
	return true
}

// keep returns when a stream is to end.
func (s *streams) keep(ctx context.Context, sc metadata.Scope, st *stream) error {
	draining := s.running.Done()
	look := time.NewTicker(s.lookTime)
	defer look.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-st.ended:
			return st.cause
		case <-draining:
			if s.idle(st) {
				return errDraining
			}
			draining = nil
		case <-look.C:
			if err := s.leased(ctx, sc); errdefs.IsNotFound(err) {
				return fmt.Errorf("stream %.100q: its lease has ended: %w", st.key.id, errdefs.ErrAborted)
			}
			if sc.Lease == "" && time.Since(began) > s.idleTime && s.idle(st) {
				return fmt.Errorf("stream %.100q: nobody took it for %s: %w", st.key.id, s.idleTime, errdefs.ErrAborted)
			}
		}
	}
}

// Send sends a message to the client.
func (st *stream) Send(m *anypb.Any) error { return st.server.Send(m) }

// Recv receives a message from the client, io.EOF once it sends no more.
func (st *stream) Recv() (*anypb.Any, error) { return st.server.Recv() }

// end closes the stream, for the reason that the client is told; nil is its end.
// Whoever is in Send or Recv comes back. The first call counts.
func (st *stream) end(cause error) {
	st.once.Do(func() {
		st.cause = cause
		close(st.ended)
	})
}
