package crash

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/events"
)

// settleJournal is how long the journal may take to give what it holds.
const settleJournal = time.Second

// checkEvents reads the journal: the exit of every container that was seen to end
// is in it, and the delete of each, and nothing that there is to tell of a task or
// an exec is in it twice. The daemon has stopped.
func (w *world) checkEvents() {
	t := w.t
	j, err := events.Open(events.Options{Dir: w.daemon.State + "/events"})
	if err != nil {
		t.Error(err)
		return
	}
	defer j.Close()
	oldest, newest := j.Bounds()
	if newest == 0 || oldest > newest {
		t.Errorf("journal holds %d to %d", oldest, newest)
		return
	}
	sub, err := j.Subscribe([]string{`topic~="^/tasks/"`}, oldest)
	if err != nil {
		t.Error(err)
		return
	}
	defer sub.Close()
	c, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	exits, deletes := map[string]int{}, map[string]int{}
	times := map[news][]*types.Envelope{} // a create that is tried again may end a task of the same name
	for {
		done, stop := context.WithTimeout(c, settleJournal)
		envelope, _, err := sub.Next(done)
		stop()
		if err != nil {
			break
		}
		n, err := newsOf(envelope)
		if err != nil {
			t.Errorf("event %s: %v", envelope.GetTopic(), err)
		}
		switch {
		case n.topic == "/tasks/exit" && n.exec == "":
			exits[n.id]++
		case n.topic == "/tasks/delete":
			deletes[n.id]++
		}
		times[n] = append(times[n], envelope)
	}
	if len(deletes) == 0 {
		t.Error("no delete event in the journal")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for what, all := range times {
		if len(all) > 1 && what.pid != 0 { // a process that nobody has a record of may be any
			t.Errorf("%d times in the journal: %+v", len(all), what)
			for _, e := range all {
				t.Logf("at %s: %x", e.GetTimestamp().AsTime(), e.GetEvent().GetValue())
			}
		}
	}
	for id, want := range w.exited {
		if want && exits[id] == 0 {
			t.Errorf("container %s: no exit event", id)
		}
		if deletes[id] == 0 {
			t.Errorf("container %s: no delete event", id)
		}
	}
}

// news is what an event of a task is about: what there is to tell once.
type news struct {
	topic, id, exec string
	pid             uint32 // 0 where it may come again
}

// newsOf reads an event.
func newsOf(e *types.Envelope) (news, error) {
	n := news{topic: e.GetTopic()}
	value := e.GetEvent().GetValue()
	var err error
	switch n.topic {
	case "/tasks/create":
		var m apievents.TaskCreate
		err = proto.Unmarshal(value, &m)
		n.id, n.pid = m.GetContainerId(), m.GetPid()
	case "/tasks/start":
		var m apievents.TaskStart
		err = proto.Unmarshal(value, &m)
		n.id, n.pid = m.GetContainerId(), m.GetPid()
	case "/tasks/exec-added": // one that a shim took with it is added again
		var m apievents.TaskExecAdded
		err = proto.Unmarshal(value, &m)
		n.id, n.exec = m.GetContainerId(), m.GetExecId()
	case "/tasks/exec-started":
		var m apievents.TaskExecStarted
		err = proto.Unmarshal(value, &m)
		n.id, n.exec, n.pid = m.GetContainerId(), m.GetExecId(), m.GetPid()
	case "/tasks/exit":
		var m apievents.TaskExit
		err = proto.Unmarshal(value, &m)
		n.id, n.pid = m.GetContainerId(), m.GetPid()
		if m.GetId() != m.GetContainerId() {
			n.exec = m.GetId()
		}
	case "/tasks/delete":
		var m apievents.TaskDelete
		err = proto.Unmarshal(value, &m)
		n.id, n.pid = m.GetContainerId(), m.GetPid()
	}
	return n, err
}
