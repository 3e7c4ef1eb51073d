package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	apievents "github.com/berthd/berth/api/events"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
)

// daemon is what a shim knows of berthd: a socket that takes events.
type daemon struct {
	t      testing.TB
	path   string
	server *ttrpc.Server
	done   chan struct{}

	mu      sync.Mutex
	last    *types.Envelope
	events  []string
	changed chan struct{}
}

func newDaemon(t testing.TB) *daemon {
	d := &daemon{t: t, path: filepath.Join(shortDir(t), "events.ttrpc"), changed: make(chan struct{})}
	d.start()
	t.Cleanup(d.stop)
	return d
}

// shortDir is a directory whose path fits into a socket's address.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "bs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (d *daemon) start() {
	_ = os.Remove(d.path)
	l, err := net.Listen("unix", d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.server, err = ttrpc.NewServer()
	if err != nil {
		d.t.Fatal(err)
	}
	forwardttrpc.RegisterEventsService(d.server, d)
	d.done = make(chan struct{})
	go func(server *ttrpc.Server, done chan struct{}) {
		_ = server.Serve(context.Background(), l)
		close(done)
	}(d.server, d.done)
}

func (d *daemon) stop() {
	if d.server != nil {
		_ = d.server.Close()
		<-d.done
		d.server = nil
	}
}

// Forward takes an event as "topic id status". One that comes again is the same to
// the nanosecond, and is dropped as the daemon's journal does: a daemon that has
// taken it may have ended before the shim had the answer.
func (d *daemon) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	e := r.Envelope
	d.mu.Lock()
	again := d.last != nil && proto.Equal(d.last, e)
	d.last = e
	d.mu.Unlock()
	if again {
		return &emptypb.Empty{}, nil
	}
	text := e.Topic
	m, err := protobuf.UnmarshalAny(e.Event)
	if err != nil || e.Namespace != namespace || e.Timestamp == nil {
		text = fmt.Sprintf("BAD %v %v", e, err)
	}
	switch m := m.(type) {
	case *apievents.TaskExit:
		text += fmt.Sprintf(" %s %d", m.Id, m.ExitStatus)
	case *apievents.TaskDelete:
		text += fmt.Sprintf(" %s %d", m.ContainerId, m.ExitStatus)
	case *apievents.TaskExecAdded:
		text += " " + m.ExecId
	case *apievents.TaskExecStarted:
		text += " " + m.ExecId
	case *apievents.TaskCreate:
		text += " " + m.ContainerId
	case *apievents.TaskStart:
		text += " " + m.ContainerId
	case *apievents.TaskOOM:
		text += " " + m.ContainerId
	case *apievents.TaskPaused:
		text += " " + m.ContainerId
	case *apievents.TaskResumed:
		text += " " + m.ContainerId
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, text)
	close(d.changed)
	d.changed = make(chan struct{})
	return &emptypb.Empty{}, nil
}

// take waits until as many events have come as are wanted, and compares.
func (d *daemon) take(want ...string) {
	d.t.Helper()
	deadline := time.After(patience)
	for {
		d.mu.Lock()
		got, changed := d.events, d.changed
		if len(got) >= len(want) {
			d.events = nil
			d.mu.Unlock()
			if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
				d.t.Fatalf("events:\n%s\nwant:\n%s", g, w)
			}
			return
		}
		d.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			d.t.Fatalf("events: %q, want %q", got, want)
		}
	}
}

// exitEvent is what daemon makes of an exit event.
func exitEvent(id string, status uint32) string {
	return fmt.Sprintf("/tasks/exit %s %d", id, status)
}

// deleteEvent is what daemon makes of a delete event.
func deleteEvent(id string, status uint32) string {
	return fmt.Sprintf("/tasks/delete %s %d", id, status)
}
