package crash

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/events"
)

// settleJournal is how long the journal may take to give what it holds.
const settleJournal = time.Second

// checkEvents reads the journal: the exit of every container that was seen to
// end is in it, once, and the delete of each. The daemon has stopped.
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
	sub, err := j.Subscribe([]string{`topic~="^/tasks/(exit|delete)"`}, oldest)
	if err != nil {
		t.Error(err)
		return
	}
	defer sub.Close()
	c, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	type process struct {
		id  string
		pid uint32
	}
	exits, deletes := map[string]int{}, map[string]int{}
	times := map[process]int{} // a create that is tried again may end a task of the same name
	for {
		done, stop := context.WithTimeout(c, settleJournal)
		envelope, _, err := sub.Next(done)
		stop()
		if err != nil {
			break
		}
		var exit apievents.TaskExit
		var del apievents.TaskDelete
		value := envelope.GetEvent().GetValue()
		switch {
		case strings.HasSuffix(envelope.GetTopic(), "/exit"):
			if err := proto.Unmarshal(value, &exit); err != nil {
				t.Error(err)
			}
			if exit.GetId() == exit.GetContainerId() {
				exits[exit.GetId()]++
				times[process{exit.GetId(), exit.GetPid()}]++
			}
		default:
			if err := proto.Unmarshal(value, &del); err != nil {
				t.Error(err)
			}
			deletes[del.GetContainerId()]++
		}
	}
	if len(deletes) == 0 {
		t.Error("no delete event in the journal")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, n := range times {
		if n > 1 && p.pid != 0 { // a process that nobody has a record of may be any
			t.Errorf("container %s: %d exit events of process %d", p.id, n, p.pid)
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
