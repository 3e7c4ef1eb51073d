package shim

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/types"
)

// Topics of the events that a shim publishes.
const (
	topicCreate      = "/tasks/create"
	topicStart       = "/tasks/start"
	topicExecAdded   = "/tasks/exec-added"
	topicExecStarted = "/tasks/exec-started"
	topicExit        = "/tasks/exit"
	topicDelete      = "/tasks/delete"
	topicPaused      = "/tasks/paused"
	topicResumed     = "/tasks/resumed"
)

// Bounds of the queue of events.
const (
	maxQueue     = 2048
	forwardTime  = 5 * time.Second // one try
	backoffFirst = 20 * time.Millisecond
	backoffLast  = 5 * time.Second
	idleTime     = 2 * time.Second // a connection without events is closed
	maxRefusals  = 5               // tries of an event that the daemon answers with an error
)

// What an event is sent by.
const (
	eventsService = "containerd.services.events.ttrpc.v1.Events"
	forwardMethod = "Forward"
)

// Publisher brings events to the daemon in the order in which they were queued,
// each until the daemon has taken it. It holds a goroutine and a connection
// only while there is something to bring.
type Publisher struct {
	Address   string // the daemon's ttrpc socket; "" drops every event, unless there is Send
	Namespace string
	Log       *slog.Logger
	// Send brings an event another way than by Address; see Shim.PublishBy. An error
	// with a gRPC status is the daemon's, any other says that it is away.
	Send func(ctx context.Context, e *types.Envelope) error

	// mu guards what follows.
	mu      sync.Mutex
	queue   []*types.Envelope // the head stays until the daemon has it
	busy    bool              // run is running
	dropped int               // since the last line in the log
	wake    chan struct{}     // a token: there is a new event
	hurry   chan struct{}     // a token: try again now
	empty   chan struct{}     // closed when the queue has run empty; nil while nobody waits
}

// Publish queues an event. It never blocks: with the queue full, which takes a
// daemon that is away for long, the oldest event goes. Exits are in their
// records anyway.
func (p *Publisher) Publish(topic string, event proto.Message) {
	if p.Address == "" && p.Send == nil {
		return
	}
	value, err := proto.Marshal(event)
	if err != nil {
		p.Log.Error("event not encoded", "topic", topic, "error", err)
		return
	}
	envelope := &types.Envelope{
		Timestamp: timestamppb.Now(),
		Namespace: p.Namespace,
		Topic:     topic,
		Event:     &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: value},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) >= maxQueue {
		p.queue = append(p.queue[:0], p.queue[1:]...)
		p.dropped++
	}
	p.queue = append(p.queue, envelope)
	if !p.busy {
		p.busy = true
		p.wake, p.hurry = make(chan struct{}, 1), make(chan struct{}, 1)
		go p.run()
		return
	}
	put(p.wake)
}

// Hurry makes a publisher that pauses after a failure try again now. A call
// from the daemon is a sign that it is back.
func (p *Publisher) Hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy {
		put(p.hurry)
	}
}

// Flush waits until the daemon has every event, or ctx ends.
func (p *Publisher) Flush(ctx context.Context) error {
	p.mu.Lock()
	if len(p.queue) == 0 {
		p.mu.Unlock()
		return nil
	}
	if p.empty == nil {
		p.empty = make(chan struct{})
	}
	empty := p.empty
	p.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// head returns the oldest event, nil without one.
func (p *Publisher) head() *types.Envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped > 0 {
		p.Log.Warn("events dropped, the daemon is away", "count", p.dropped)
		p.dropped = 0
	}
	if len(p.queue) > 0 {
		return p.queue[0]
	}
	if p.empty != nil {
		close(p.empty)
		p.empty = nil
	}
	return nil
}

// rest ends run, unless an event came in between.
func (p *Publisher) rest() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return false
	}
	p.busy, p.queue = false, nil
	return true
}

// run brings events until there was none for idleTime.
func (p *Publisher) run() {
	conn := &connection{address: p.Address, send: p.Send}
	defer conn.close()
	backoff, refusals, quiet := backoffFirst, 0, false
	for {
		envelope := p.head()
		if envelope == nil {
			if !pause(idleTime, p.wake) && p.rest() {
				return
			}
			continue
		}
		err := conn.forward(envelope)
		if err != nil && refused(err) {
			if refusals++; refusals >= maxRefusals {
				p.Log.Error("event dropped, the daemon refuses it", "topic", envelope.Topic, "error", err)
				err = nil
			}
		}
		if err == nil {
			p.taken(envelope)
			backoff, refusals, quiet = backoffFirst, 0, false
			continue
		}
		if !quiet {
			p.Log.Warn("event not delivered, trying on", "topic", envelope.Topic, "error", err)
			quiet = true
		}
		if pause(backoff, p.hurry) {
			backoff = backoffFirst
		} else {
			backoff = min(2*backoff, backoffLast)
		}
	}
}

// pause waits for d or a token, and tells whether it was the token.
func pause(d time.Duration, token <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-token:
		return true
	}
}

// put leaves a token, unless one is there.
func put(token chan<- struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}

// taken removes the head of the queue, if it was not dropped meanwhile.
func (p *Publisher) taken(envelope *types.Envelope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 && p.queue[0] == envelope {
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
}

// refused tells whether the daemon answered an event with an error of its own,
// as opposed to being away.
func refused(err error) bool {
	s, ok := status.FromError(err)
	if !ok || errors.Is(err, ttrpc.ErrClosed) {
		return false
	}
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	}
	return true
}

// connection is to the daemon's socket for events; made when needed.
type connection struct {
	address string
	send    func(ctx context.Context, e *types.Envelope) error // in place of it
	client  *ttrpc.Client
}

// forward sends one event and waits for the answer. A connection that fails is
// given up, and made anew once if it was an old one.
func (c *connection) forward(envelope *types.Envelope) error {
	ctx, cancel := context.WithTimeout(context.Background(), forwardTime)
	defer cancel()
	if c.send != nil {
		return c.send(ctx, envelope)
	}
	old := c.client != nil
	for {
		if c.client == nil {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.address)
			if err != nil {
				return err
			}
			c.client = ttrpc.NewClient(conn)
		}
		err := c.client.Call(ctx, eventsService, forwardMethod, &forward.ForwardRequest{Envelope: envelope}, &emptypb.Empty{})
		if err == nil || refused(err) {
			return err
		}
		c.close()
		if !old || ctx.Err() != nil {
			return err
		}
		old = false
	}
}

// close gives the connection up.
func (c *connection) close() {
	if c.client != nil {
		_ = c.client.Close() // nothing is lost: what was not answered is sent again
		c.client = nil
	}
}
