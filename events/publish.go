package events

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/protobuf"
)

// Publish journals an event with the time of now. The event may be an Any
// already, of whatever type. It is in the journal when Publish returns; ctx is
// not waited on, as what the event tells has happened. FailedPrecondition
// without a namespace; InvalidArgument for a bad namespace, topic or event;
// ResourceExhausted if it is too large; Unavailable if it can't be written.
func (j *Journal) Publish(ctx context.Context, namespace, topic string, event proto.Message) error {
	return j.publish(namespace, topic, event, false)
}

// PublishOnce is Publish for the daemon's own word about tasks: the end of a
// process that is among the latest events, because a shim has told of it, is not
// journaled again.
func (j *Journal) PublishOnce(ctx context.Context, namespace, topic string, event proto.Message) error {
	return j.publish(namespace, topic, event, true)
}

func (j *Journal) publish(namespace, topic string, event proto.Message, once bool) error {
	if err := names.Namespace(namespace); err != nil {
		return fmt.Errorf("publish event %q: %w", shorten(topic), err)
	}
	if err := names.Topic(topic); err != nil {
		return fmt.Errorf("publish event: %w", err)
	}
	packed, err := protobuf.MarshalAny(event)
	if err != nil {
		return fmt.Errorf("publish event %q: %w", topic, err)
	}
	if packed.GetTypeUrl() == "" {
		return fmt.Errorf("publish event %q: its type is not named: %w", topic, errdefs.ErrInvalidArgument)
	}
	return j.journal(&types.Envelope{
		Timestamp: timestamppb.New(j.now()),
		Namespace: namespace,
		Topic:     topic,
		Event:     packed,
	}, once)
}

// Forward journals an event that a shim or another process made, as it is; a
// missing time counts as 1970. An event of a task that is among the latest ones
// already, with the same time to the nanosecond or of the same end of a process,
// is not journaled again: whoever sent it has missed the answer, as happens when
// the daemon is killed in between.
// InvalidArgument for a bad namespace or topic, also for none; the rest as for
// Publish.
func (j *Journal) Forward(ctx context.Context, envelope *types.Envelope) error {
	if err := names.Identifier(envelope.GetNamespace()); err != nil {
		return fmt.Errorf("forward event %q: namespace: %w", shorten(envelope.GetTopic()), err)
	}
	if err := names.Topic(envelope.GetTopic()); err != nil {
		return fmt.Errorf("forward event: %w", err)
	}
	if envelope.GetTimestamp() == nil {
		envelope = proto.CloneOf(envelope)
		envelope.Timestamp = &timestamppb.Timestamp{}
	}
	return j.journal(envelope, true)
}

// buffers are for records on their way to the file.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// maxPooled is the largest buffer that is kept for the next event.
const maxPooled = 64 << 10

// journal appends an event; with once, unless it is one of a task's that is among
// the latest.
func (j *Journal) journal(envelope *types.Envelope, once bool) error {
	if size, limit := int64(proto.Size(envelope)), min(maxBody, j.maxBytes/4); size > limit {
		return fmt.Errorf("event %q of %d bytes: more than %d: %w", envelope.Topic, size, limit, errdefs.ErrResourceExhausted)
	}
	buffer := buffers.Get().(*[]byte)
	defer func() {
		if cap(*buffer) <= maxPooled {
			buffers.Put(buffer)
		}
	}()
	var free [headerLen]byte
	record, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append((*buffer)[:0], free[:]...), envelope)
	if err != nil {
		return fmt.Errorf("event %q: %w: %w", envelope.Topic, err, errdefs.ErrInvalidArgument)
	}
	*buffer = record
	if err := j.append(record, envelope, once); err != nil {
		return fmt.Errorf("event %q: %w", envelope.Topic, err)
	}
	return nil
}

// shorten keeps a text of unknown length readable.
func shorten(text string) string {
	const shown = 100
	if len(text) > shown {
		return text[:shown] + "..."
	}
	return text
}
