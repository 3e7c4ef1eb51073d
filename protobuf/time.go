package protobuf

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Timestamp writes a time; the zero time is no timestamp at all.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Time reads a timestamp, in UTC; none is the zero time.
func Time(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return ts.AsTime()
}
