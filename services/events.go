package services

import (
	"context"

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
}

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

// Subscribe streams events from now on. The stream's header tells that now has
// come: whatever is published after a client has read it will be seen.
func (s *eventService) Subscribe(r *eventsapi.SubscribeRequest, stream grpc.ServerStreamingServer[types.Envelope]) error {
	sub, err := s.journal.Subscribe(r.GetFilters(), 0)
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		e, _, err := sub.Next(stream.Context())
		if err != nil {
			return err
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
