package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	apievents "github.com/berthd/berth/api/events"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	"github.com/berthd/berth/internal/leak"
)

// taker is a daemon's end of events.
type taker struct {
	t      *testing.T
	path   string
	server *ttrpc.Server
	served chan struct{}
	refuse string // topic that is answered with an error

	mu     sync.Mutex
	topics []string
}

func newTaker(t *testing.T) *taker {
	dir, err := os.MkdirTemp("", "ev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k := &taker{t: t, path: filepath.Join(dir, "s")}
	t.Cleanup(k.stop)
	return k
}

func (k *taker) start() {
	k.t.Helper()
	l, err := net.Listen("unix", k.path)
	if err != nil {
		k.t.Fatal(err)
	}
	if k.server, err = ttrpc.NewServer(); err != nil {
		k.t.Fatal(err)
	}
	forwardttrpc.RegisterEventsService(k.server, k)
	k.served = make(chan struct{})
	go func(server *ttrpc.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(context.Background(), l)
	}(k.server, k.served)
}

func (k *taker) stop() {
	if k.server != nil {
		_ = k.server.Close()
		<-k.served
		k.server = nil
	}
}

// Forward notes the topic of an event.
func (k *taker) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Envelope.Topic == k.refuse {
		return nil, status.Error(codes.InvalidArgument, "no")
	}
	k.topics = append(k.topics, r.Envelope.Topic)
	return &emptypb.Empty{}, nil
}

// taken are the topics in the order they came. One that came again at once counts
// once: a daemon that ends in between has taken it, and could not say so.
func (k *taker) taken() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(slices.Compact(slices.Clone(k.topics)), " ")
}

func newPublisher(t *testing.T, address string) *Publisher {
	return &Publisher{Address: address, Namespace: "n", Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
}

func flush(t *testing.T, p *Publisher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestPublish brings events in order, over a daemon that comes late, leaves and
// comes back.
func TestPublish(t *testing.T) {
	leak.Check(t)
	k := newTaker(t)
	p := newPublisher(t, k.path)
	var want []string
	publish := func(n int) {
		for range n {
			topic := fmt.Sprintf("/%d", len(want))
			want = append(want, topic)
			p.Publish(topic, &apievents.TaskOOM{ContainerId: "c"})
		}
	}
	flush(t, p) // of nothing
	publish(10)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Flush(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("flush without a daemon: %v", err)
	}
	for range 3 {
		k.start()
		p.Hurry()
		publish(10)
		flush(t, p)
		k.stop()
		publish(10)
	}
	k.start()
	p.Hurry()
	flush(t, p)
	if got := k.taken(); got != strings.Join(want, " ") {
		t.Errorf("taken %s\nwant  %s", got, want)
	}
}

// TestQueueIsBounded drops the oldest.
func TestQueueIsBounded(t *testing.T) {
	leak.Check(t)
	k := newTaker(t)
	p := newPublisher(t, k.path)
	const extra = 100
	for i := range maxQueue + extra {
		p.Publish(fmt.Sprintf("/%d", i), &apievents.TaskOOM{})
	}
	k.start()
	p.Hurry()
	flush(t, p)
	got := strings.Fields(k.taken())
	if len(got) > maxQueue && got[0] == "/0" {
		got = got[1:] // it was under way when it was dropped
	}
	if len(got) != maxQueue || got[0] != fmt.Sprintf("/%d", extra) || got[maxQueue-1] != fmt.Sprintf("/%d", maxQueue+extra-1) {
		t.Errorf("%d events from %s to %s", len(got), got[0], got[len(got)-1])
	}
}

// TestRefusedEvent does not hold up the ones behind it for ever.
func TestRefusedEvent(t *testing.T) {
	leak.Check(t)
	k := newTaker(t)
	k.refuse = "/bad"
	k.start()
	p := newPublisher(t, k.path)
	for _, topic := range []string{"/a", "/bad", "/b"} {
		p.Publish(topic, &apievents.TaskOOM{})
	}
	flush(t, p)
	if got := k.taken(); got != "/a /b" {
		t.Errorf("taken %s", got)
	}
}

// TestNoAddress drops events and waits for nothing.
func TestNoAddress(t *testing.T) {
	leak.Check(t)
	p := newPublisher(t, "")
	p.Publish("/a", &apievents.TaskOOM{})
	flush(t, p)
}
