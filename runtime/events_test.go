package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
)

// record notes an event.
func (m *machine) record(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, line)
	close(m.bell)
	m.bell = make(chan struct{})
}

// describe writes an event as the vectors do.
func describe(topic string, event proto.Message) string {
	switch e := event.(type) {
	case *apievents.TaskExit:
		return fmt.Sprintf("%s %s %d", topic, e.Id, e.ExitStatus)
	case *apievents.TaskDelete:
		return fmt.Sprintf("%s %s %d", topic, e.ContainerId, e.ExitStatus)
	case *apievents.TaskExecAdded:
		return topic + " " + e.ExecId
	case *apievents.TaskExecStarted:
		return topic + " " + e.ExecId
	case interface{ GetContainerId() string }:
		return topic + " " + e.GetContainerId()
	}
	return topic
}

// forward takes an event as the journal does: one that comes again, as its taking was
// not answered for, is taken once. Exits and deletes are the daemon's to tell once.
func (m *machine) forward(_ context.Context, e *types.Envelope) error {
	m.mu.Lock()
	refuse := m.refuse
	again := false
	if at := e.GetTimestamp(); !refuse && at.GetNanos() != 0 && e.Topic != "/tasks/exit" && e.Topic != "/tasks/delete" {
		key := fmt.Sprintf("%s %d.%d %x", e.Topic, at.GetSeconds(), at.GetNanos(), e.Event.GetValue())
		again = m.taken[key]
		m.taken[key] = true
	}
	m.mu.Unlock()
	if refuse {
		return errors.New("no")
	}
	if again {
		return nil
	}
	event, err := anypb.UnmarshalNew(&anypb.Any{TypeUrl: "x/" + e.Event.TypeUrl, Value: e.Event.Value}, proto.UnmarshalOptions{})
	if err != nil {
		return err
	}
	m.record(describe(e.Topic, event))
	return nil
}

func (m *machine) publish(_ context.Context, ns, topic string, event proto.Message) {
	if ns != testNS {
		m.t.Errorf("event in namespace %q", ns)
	}
	m.record(describe(topic, event))
}

// expect waits until the events are those, no more and no less, and forgets them.
// An event whose taking a daemon that stopped did not answer for is sent again
// to the next one; as the last one before, it may come once more. Exits and
// deletes are the daemon's to publish once.
func (m *machine) expect(want ...string) {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		m.mu.Lock()
		if len(m.events) > 0 && m.events[0] == m.expected && !strings.Contains(m.expected, "/exit ") && !strings.Contains(m.expected, "/delete ") {
			m.events = m.events[1:]
		}
		got, bell := slices.Clone(m.events), m.bell
		if len(got) >= len(want) {
			m.events = nil
		}
		m.mu.Unlock()
		if len(got) >= len(want) {
			if !slices.Equal(got, want) {
				m.t.Fatalf("events: %q, want %q", got, want)
			}
			if len(want) > 0 {
				m.expected = want[len(want)-1]
			}
			return
		}
		select {
		case <-bell:
		case <-deadline:
			m.t.Fatalf("events: %q, want %q", got, want)
		}
	}
}
