package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
)

// clock is the time at which the journals of these tests start.
func clock() time.Time { return time.UnixMicro(1000) }

func openAt(t testing.TB, dir string, maxBytes int64) *Journal {
	t.Helper()
	j, err := Open(Options{Dir: dir, MaxBytes: maxBytes, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func publish(t testing.TB, j *Journal, id string) {
	t.Helper()
	if err := j.Publish(t.Context(), "ns", "/tasks/start", &apievents.TaskStart{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
}

func subscribe(t testing.TB, j *Journal, since uint64, filters ...string) *Subscription {
	t.Helper()
	s, err := j.Subscribe(filters, since)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// next gives the container of the next event, which must be there or come soon.
func next(t testing.TB, s *Subscription) (id string, number uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	envelope, number, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var start apievents.TaskStart
	if err := proto.Unmarshal(envelope.Event.Value, &start); err != nil {
		t.Fatal(err)
	}
	return start.ContainerId, number
}

// nothing fails if an event is to be had at once.
func nothing(t testing.TB, s *Subscription) {
	t.Helper()
	for {
		if _, changed, err := s.look(); err != nil {
			t.Fatal(err)
		} else if changed != nil && len(s.ahead) == 0 {
			return
		}
		if number, _, err := s.read(t.Context()); err != nil || number >= s.want {
			t.Fatalf("there is something: %d, %v", number, err)
		}
	}
}

func expect(t testing.TB, s *Subscription, ids ...string) {
	t.Helper()
	for _, want := range ids {
		if got, _ := next(t, s); got != want {
			t.Fatalf("event of %q, want %q", got, want)
		}
	}
	nothing(t, s)
}

func TestPublishAndSubscribe(t *testing.T) {
	leak.Check(t)
	j := openAt(t, t.TempDir(), 0)
	publish(t, j, "before")
	live := subscribe(t, j, 0)
	nothing(t, live)
	publish(t, j, "a")
	publish(t, j, "b")
	expect(t, live, "a", "b")
	expect(t, subscribe(t, j, 1000), "a", "b")

	envelope, number, err := subscribe(t, j, 1001).Next(t.Context())
	if err != nil || number != 1002 {
		t.Fatalf("number %d, %v", number, err)
	}
	want := &types.Envelope{
		Timestamp: timestamppb.New(clock()), Namespace: "ns", Topic: "/tasks/start",
		Event: &anypb.Any{TypeUrl: "containerd.events.TaskStart", Value: []byte("\n\x01b")},
	}
	if !proto.Equal(envelope, want) {
		t.Errorf("got %v, want %v", envelope, want)
	}
	if oldest, newest := j.Bounds(); oldest != 1000 || newest != 1002 {
		t.Errorf("bounds %d, %d", oldest, newest)
	}
}

func TestValidation(t *testing.T) {
	j := openAt(t, t.TempDir(), 0)
	event := &apievents.TaskStart{}
	packed := &anypb.Any{TypeUrl: "a.b/C"}
	envelope := func(ns, topic string) *types.Envelope {
		return &types.Envelope{Namespace: ns, Topic: topic, Event: packed}
	}
	huge := &anypb.Any{TypeUrl: "a.b/C", Value: make([]byte, maxBody)}
	for name, c := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"no namespace":          {j.Publish(t.Context(), "", "/a", event), errdefs.IsFailedPrecondition},
		"bad namespace":         {j.Publish(t.Context(), "a/b", "/a", event), errdefs.IsInvalidArgument},
		"no topic":              {j.Publish(t.Context(), "a", "", event), errdefs.IsInvalidArgument},
		"bad topic":             {j.Publish(t.Context(), "a", "/a//b", event), errdefs.IsInvalidArgument},
		"no event":              {j.Publish(t.Context(), "a", "/a", nil), errdefs.IsInvalidArgument},
		"nil event":             {j.Publish(t.Context(), "a", "/a", (*anypb.Any)(nil)), errdefs.IsInvalidArgument},
		"no type":               {j.Publish(t.Context(), "a", "/a", &anypb.Any{}), errdefs.IsInvalidArgument},
		"bad text":              {j.Publish(t.Context(), "a", "/a", &apievents.TaskStart{ContainerId: "\xff"}), errdefs.IsInvalidArgument},
		"bad text forwarded":    {j.Forward(t.Context(), &types.Envelope{Namespace: "a", Topic: "/a", Event: &anypb.Any{TypeUrl: "\xff"}}), errdefs.IsInvalidArgument},
		"too large":             {j.Publish(t.Context(), "a", "/a", huge), errdefs.IsResourceExhausted},
		"forward nothing":       {j.Forward(t.Context(), nil), errdefs.IsInvalidArgument},
		"forward no namespace":  {j.Forward(t.Context(), envelope("", "/a")), errdefs.IsInvalidArgument},
		"forward bad namespace": {j.Forward(t.Context(), envelope("a..b", "/a")), errdefs.IsInvalidArgument},
		"forward no topic":      {j.Forward(t.Context(), envelope("a", "")), errdefs.IsInvalidArgument},
		"bad filter":            {second(j.Subscribe([]string{"x=y"}, 0)), errdefs.IsInvalidArgument},
		"since the future":      {second(j.Subscribe(nil, 1)), errdefs.IsOutOfRange}, // nothing is there yet
		"small bound":           {second(Open(Options{Dir: t.TempDir(), MaxBytes: 1})), errdefs.IsInvalidArgument},
		"no directory":          {second(Open(Options{Dir: "/proc/1/no/such"})), func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
	} {
		if !c.is(c.err) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if oldest, newest := j.Bounds(); oldest != newest+1 {
		t.Errorf("something was journaled: %d, %d", oldest, newest)
	}
}

func second[T any](_ T, err error) error { return err }

func TestForward(t *testing.T) {
	j := openAt(t, t.TempDir(), 0)
	s := subscribe(t, j, 0)
	timed := &types.Envelope{
		Timestamp: &timestamppb.Timestamp{Seconds: 1700000000, Nanos: 5}, Namespace: "other", Topic: "/x/y",
		Event: &anypb.Any{TypeUrl: "foreign/Type", Value: []byte{0xff, 0}},
	}
	untimed := &types.Envelope{Namespace: "other", Topic: "/x/y"}
	for _, envelope := range []*types.Envelope{timed, untimed} {
		if err := j.Forward(t.Context(), envelope); err != nil {
			t.Fatal(err)
		}
	}
	if untimed.Timestamp != nil {
		t.Error("the caller's envelope was changed")
	}
	got, _, err := s.Next(t.Context())
	if err != nil || !proto.Equal(got, timed) {
		t.Errorf("got %v, %v", got, err)
	}
	got, _, err = s.Next(t.Context())
	if err != nil || got.Timestamp == nil || !got.Timestamp.AsTime().Equal(time.Unix(0, 0)) {
		t.Errorf("without a time: %v, %v", got, err)
	}
}

func TestFilters(t *testing.T) {
	j := openAt(t, t.TempDir(), 0)
	for _, c := range []struct {
		filters []string
		want    bool
	}{
		{nil, true},
		{[]string{""}, true},
		{[]string{"namespace==moby,topic~=|^/tasks/|"}, true},
		{[]string{"namespace==other"}, false},
		{[]string{"namespace==other", "topic"}, true},
		{[]string{`topic=="/tasks/exit"`}, true},
		{[]string{"event.container_id==c1"}, true},
		{[]string{"event.container_id==c2"}, false},
		{[]string{"event.pid"}, false},
		{[]string{"event.exited_at"}, false},
		{[]string{"event"}, false},
		{[]string{"namespace.x"}, false},
		{[]string{"other"}, false},
		{[]string{"event.container_id!=x"}, true},
	} {
		s := subscribe(t, j, 0, c.filters...)
		exit := &apievents.TaskExit{ContainerId: "c1", Id: "e", Pid: 7, ExitedAt: timestamppb.Now()}
		if err := j.Publish(t.Context(), "moby", "/tasks/exit", exit); err != nil {
			t.Fatal(err)
		}
		if err := j.Publish(t.Context(), "end", "/end", &anypb.Any{TypeUrl: "foreign"}); err != nil {
			t.Fatal(err)
		}
		_, end := j.Bounds()
		s.filter = either{s.filter, "/end"}
		_, number, err := s.Next(t.Context())
		if err != nil || (number == end-1) != c.want {
			t.Errorf("%q: match %v, %v, want %v", c.filters, number == end-1, err, c.want)
		}
	}
}

func TestEnds(t *testing.T) {
	leak.Check(t)
	j := openAt(t, t.TempDir(), 0)
	for name, end := range map[string]func(*Subscription, context.CancelFunc){
		"cancel": func(_ *Subscription, cancel context.CancelFunc) { cancel() },
		"close":  func(s *Subscription, _ context.CancelFunc) { s.Close(); s.Close() },
	} {
		s := subscribe(t, j, 0)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- second2(s.Next(ctx)) }()
		end(s, cancel)
		if err := <-done; !errdefs.IsCanceled(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := subscribe(t, j, 0)
	done := make(chan error, 1)
	go func() { done <- second2(s.Next(t.Context())) }()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Errorf("journal closed: %v", err)
	}
	for name, err := range map[string]error{
		"publish":   j.Publish(t.Context(), "a", "/a", &apievents.TaskStart{}),
		"subscribe": second(j.Subscribe(nil, 0)),
		"next":      second2(s.Next(t.Context())),
	} {
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
	if err := j.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func second2[A, B any](_ A, _ B, err error) error { return err }

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	for round := range 4 {
		j := openAt(t, dir, 0)
		live := subscribe(t, j, 0)
		publish(t, j, fmt.Sprint("r", round))
		_, number := next(t, live)
		if round > 0 && number != last+1 {
			t.Errorf("round %d: number %d after %d", round, number, last)
		}
		last = number
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j := openAt(t, dir, 0)
	expect(t, subscribe(t, j, 999), "r0", "r1", "r2", "r3")
	if err := second(j.Subscribe(nil, last+1)); !errdefs.IsOutOfRange(err) {
		t.Errorf("since what is to come: %v", err)
	}
	expect(t, subscribe(t, j, last))
}

// TestTornTail cuts the journal at every byte and opens it: what is whole
// stays, what comes gets a number of its own.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	j := openAt(t, dir, 0)
	for _, id := range []string{"a", "b", "c"} {
		publish(t, j, id)
	}
	j.Close()
	path := segmentPath(dir, 1000)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	record := (len(whole) - len(magic)) / 3
	for cut := range len(whole) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		rest := max(0, cut-len(magic))
		checkMended(t, dir, rest/record, rest%record != 0)
	}
}

// checkMended opens a journal that should have kept the first records, and one
// more time after an event was added.
func checkMended(t *testing.T, dir string, kept int, torn bool) {
	t.Helper()
	want := []string{"a", "b", "c"}[:kept]
	for round := range 2 {
		j := openAt(t, dir, 0)
		id := fmt.Sprint("new", round)
		publish(t, j, id)
		want = append(want, id)
		oldest, newest := j.Bounds()
		if newest < 1000+uint64(kept+round) || torn && newest == 1000+uint64(kept) {
			t.Errorf("kept %d, torn %v: number %d again", kept, torn, newest)
		}
		expect(t, subscribe(t, j, oldest-1), want...)
		j.Close()
	}
}

// TestDamage flips bits: in the last segment the journal goes on before it, in
// an older one the reader is told.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	j, err := Open(Options{Dir: dir, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b", "c"} {
		publish(t, j, id)
	}
	j.Close()
	path := segmentPath(dir, 1000)
	whole, _ := os.ReadFile(path)
	record := (len(whole) - len(magic)) / 3
	whole[len(magic)+record+headerLen+3] ^= 1 // in the body of "b"
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err = Open(Options{Dir: dir, Now: clock, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	publish(t, j, "d")
	s := subscribe(t, j, 999)
	if id, number := next(t, s); id != "a" || number != 1000 {
		t.Errorf("%s %d", id, number)
	}
	if id, number := next(t, s); id != "d" || number <= 1002 {
		t.Errorf("%s has number %d, which was given before", id, number)
	}
	if !strings.Contains(log.String(), "event journal cut") || !strings.Contains(log.String(), "record is damaged") {
		t.Errorf("log: %s", log.String())
	}

	// Now the first segment is not the last any more.
	whole[len(magic)+headerLen+3] ^= 1
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = subscribe(t, j, 999).Next(t.Context())
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "record is damaged") {
		t.Errorf("damaged: %v", err)
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"x", "1.events", "0000000000000000000x.events", "00000000000000001000.events~"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j := openAt(t, dir, 0)
	publish(t, j, "a")
	expect(t, subscribe(t, j, 999), "a")
	if entries, _ := os.ReadDir(dir); len(entries) != 5 {
		t.Errorf("%v", entries)
	}
}
