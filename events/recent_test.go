package events

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
)

// TestForwardedAgain forwards events once more, as a shim does that has missed
// the answer, also to the journal that is opened next: those of tasks are there
// once. What only looks alike is there each time.
func TestForwardedAgain(t *testing.T) {
	dir := t.TempDir()
	event := func(id string) *types.Envelope {
		packed, err := protobuf.MarshalAny(&apievents.TaskStart{ContainerId: id, Pid: 7})
		if err != nil {
			t.Fatal(err)
		}
		return &types.Envelope{Timestamp: timestamppb.New(time.Unix(1, 5)), Namespace: "ns", Topic: "/tasks/start", Event: packed}
	}
	other := event("a")
	other.Timestamp.Nanos++ // another one, at another time
	timeless := event("a")
	timeless.Timestamp = nil
	foreign := event("a")
	foreign.Topic = "/mine/start"
	for range 2 {
		j, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []*types.Envelope{event("a"), event("b"), other, event("a"), timeless, foreign} {
			if err := j.Forward(t.Context(), proto.CloneOf(e)); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	oldest, newest := j.Bounds()
	if got, want := newest-oldest+1, uint64(3+2*2); got != want {
		t.Errorf("%d events, want %d", got, want)
	}
}

// TestRecentForgets holds no more than it has to.
func TestRecentForgets(t *testing.T) {
	r := newRecent()
	for i := range 3 * maxRecent {
		r.add(fmt.Append(nil, i))
		r.add([]byte("again"))
	}
	if len(r.set) > maxRecent || !r.has([]byte("again")) || r.has([]byte("0")) || !r.has(fmt.Append(nil, 3*maxRecent-1)) {
		t.Error(len(r.set))
	}
}
