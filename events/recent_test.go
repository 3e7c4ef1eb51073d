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

// TestEndTwice has an exit told by a shim, and by daemons that don't know of it.
func TestEndTwice(t *testing.T) {
	dir := t.TempDir()
	exit := &apievents.TaskExit{ContainerId: "a", Id: "a", Pid: 7, ExitStatus: 3, ExitedAt: timestamppb.New(time.Unix(5, 6))}
	packed, err := protobuf.MarshalAny(exit)
	if err != nil {
		t.Fatal(err)
	}
	count := func(j *Journal) int {
		oldest, newest := j.Bounds()
		return int(newest - oldest + 1)
	}
	for range 2 {
		j, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		err = j.Forward(t.Context(), &types.Envelope{Timestamp: timestamppb.Now(), Namespace: "ns", Topic: "/tasks/exit", Event: packed})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.PublishOnce(t.Context(), "ns", "/tasks/exit", exit); err != nil {
			t.Fatal(err)
		}
		if n := count(j); n != 1 {
			t.Errorf("%d events", n)
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
	again := proto.CloneOf(exit)
	again.Pid++
	for _, e := range []*apievents.TaskExit{again, exit} { // another one; and a client's own word, which is never dropped
		if err := j.Publish(t.Context(), "ns", "/tasks/exit", e); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(j); n != 3 {
		t.Errorf("%d events", n)
	}
}

// TestRecentForgets holds no more than it has to.
func TestRecentForgets(t *testing.T) {
	r := newRecent()
	for i := range uint64(3 * maxRecent) {
		r.add(i + 1)
		r.add(1 << 40)
	}
	if len(r.set) > maxRecent || !r.has(1<<40) || r.has(1) || !r.has(3*maxRecent) {
		t.Error(len(r.set))
	}
	for i := range 3 * maxRecent {
		r.load(fmt.Append(nil, i))
	}
	if len(r.loaded) != maxRecent || string(r.loaded[r.next]) != fmt.Sprint(2*maxRecent) {
		t.Error(len(r.loaded), string(r.loaded[r.next]))
	}
}
