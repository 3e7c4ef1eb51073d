package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/types"
)

const (
	maxEvent       = 4 << 20          // bytes of an event on standard input
	publishTimeout = 10 * time.Second // for the daemon, which may be starting just now
)

// publish sends the event on in, an Any, to the daemon. Shims that speak no
// ttrpc run it.
func publish(ctx context.Context, f *flags, args []string, in io.Reader) error {
	c, err := f.load()
	if err != nil {
		return err
	}
	set := flag.NewFlagSet("berthd publish", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	topic := set.String("topic", "", "`topic` of the event, such as /tasks/exit")
	namespace := set.String("namespace", "", "`namespace` of the event")
	if err := set.Parse(args); err != nil || *topic == "" || *namespace == "" || set.NArg() > 0 {
		return errors.New("usage: berthd [--address SOCKET] publish --topic TOPIC --namespace NS < EVENT")
	}
	event, err := readEvent(in)
	if err != nil {
		return fmt.Errorf("publish %s: %w", *topic, err)
	}
	conn, err := grpc.NewClient("unix://"+c.GRPC.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("publish %s: %w", *topic, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	_, err = eventsgrpc.NewEventsClient(conn).Forward(ctx, &events.ForwardRequest{Envelope: &types.Envelope{
		Timestamp: timestamppb.Now(), Namespace: *namespace, Topic: *topic, Event: event,
	}}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("publish %s to %s: %w", *topic, c.GRPC.Address, errgrpc.ToNative(err))
	}
	return nil
}

func readEvent(in io.Reader) (*anypb.Any, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxEvent+1))
	if err != nil {
		return nil, fmt.Errorf("read event: %w", err)
	}
	if len(data) > maxEvent {
		return nil, fmt.Errorf("event on standard input is larger than %d bytes: %w", maxEvent, errdefs.ErrResourceExhausted)
	}
	event := &anypb.Any{}
	if err := proto.Unmarshal(data, event); err != nil {
		return nil, fmt.Errorf("event on standard input is no google.protobuf.Any: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return event, nil
}
