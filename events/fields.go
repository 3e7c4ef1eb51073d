package events

import (
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
)

// fields is an event as a filter sees it. The event itself is unpacked when a
// filter first asks for a field of it.
type fields struct {
	envelope *types.Envelope
	event    proto.Message
	unpacked bool
}

// Field reads namespace, topic and event.FIELD... An event of a type that is
// not linked has no fields.
func (f *fields) Field(path []string) (value string, present bool) {
	switch path[0] {
	case "namespace":
		return alone(path, f.envelope.GetNamespace())
	case "topic":
		return alone(path, f.envelope.GetTopic())
	case "event":
		return protobuf.Field(f.unpack(), path[1:])
	}
	return "", false
}

func alone(path []string, value string) (string, bool) {
	if len(path) > 1 {
		return "", false
	}
	return value, value != ""
}

func (f *fields) unpack() proto.Message {
	if !f.unpacked {
		f.unpacked = true
		// A type that is not linked is no error: nothing of it can be read.
		f.event, _ = protobuf.UnmarshalAny(f.envelope.GetEvent())
	}
	return f.event
}
