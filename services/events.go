package services

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	forwardapi "github.com/berthd/berth/api/services/events/ttrpc/v1"
	eventsapi "github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/events"
)

// forwarder takes an event that a shim has sent.
type forwarder func(ctx context.Context, e *types.Envelope) error

type eventService struct {
	eventsgrpc.UnimplementedEventsServer
	journal *events.Journal
	forward forwarder
	began   time.Time // of this daemon
}

const (
	// catchUpTime is how long a daemon that follows another one tells subscribers what
	// they may have missed: clients look for a daemon that went away every second or so.
	catchUpTime = time.Minute
	// catchUpTopic begins the topics of which is told.
	catchUpTopic = "/tasks/"
)

func (s *eventService) Publish(ctx context.Context, r *eventsapi.PublishRequest) (*emptypb.Empty, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	if r.GetEvent() == nil {
		return nil, missing("event")
	}
	return &emptypb.Empty{}, s.journal.Publish(ctx, sc.Namespace, r.GetTopic(), r.GetEvent())
}

func (s *eventService) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.forward.envelope(ctx, r.GetEnvelope())
}

func (f forwarder) envelope(ctx context.Context, e *types.Envelope) error {
	if e == nil {
		return missing("envelope")
	}
	return f(ctx, e)
}

// subscribe gives events from now on, and those of tasks too that a client could not
// see because its daemon was gone: upTo is the last of those, 0 without any.
//
// Clients that keep their own books of tasks, as dockerd does, don't ask for them
// again when they have lost the daemon: an exit that they are not told of is one that
// they never learn of.
func (s *eventService) subscribe(filters []string) (sub *events.Subscription, upTo uint64, err error) {
	if since := s.journal.Began(); since != 0 && time.Since(s.began) < catchUpTime {
		_, upTo = s.journal.Bounds()
		sub, err = s.journal.Subscribe(filters, since)
		if !errdefs.IsOutOfRange(err) {
			return sub, upTo, err
		}
	}
	sub, err = s.journal.Subscribe(filters, 0)
	return sub, 0, err
}

// Subscribe streams events from now on. The stream's header tells that now has
// come: whatever is published after a client has read it will be seen. In the first
// minute of a daemon that follows another one it begins with what happened to tasks
// in between (docs/adr/0029).
func (s *eventService) Subscribe(r *eventsapi.SubscribeRequest, stream grpc.ServerStreamingServer[types.Envelope]) error {
	sub, upTo, err := s.subscribe(r.GetFilters())
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		e, number, err := sub.Next(stream.Context())
		if err != nil {
			return err
		}
		if number <= upTo && !strings.HasPrefix(e.GetTopic(), catchUpTopic) {
			continue
		}
		if err := stream.Send(e); err != nil {
			return err
		}
	}
}

// forwardService is what shims speak to, on ttrpc.
type forwardService struct{ forward forwarder }

func (s *forwardService) Forward(ctx context.Context, r *forwardapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.forward.envelope(ctx, r.GetEnvelope())
}
