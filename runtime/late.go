package runtime

import (
	"context"
	"path/filepath"
	"strings"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/runtime/record"
)

// late is a task that an earlier daemon has deleted without having come to see
// its last events published. Its shim may have left with them.
type late struct {
	ns, id string
	exit   *record.Exit // its exit event is due
	del    record.Exit  // what the delete event says
}

// findLate finds what is to be published of the bundles that wait to be removed.
// From here on the same events of a shim that is still leaving are dropped.
func (t *Tasks) findLate(leftovers []string) []late {
	var found []late
	for _, path := range leftovers {
		if !strings.Contains(filepath.Base(path), goneSuffix) {
			continue
		}
		r := readRecords(path)
		if r.intent == nil || r.seen.deleted || r.started == nil || t.ofEarlierBoot(r, false) {
			continue
		}
		l := late{ns: r.intent.Namespace, id: r.intent.ID, del: record.Exit{PID: r.started.PID}}
		if r.exit != nil {
			l.del = *r.exit
			if pid, seen := r.seen.exits[""]; r.ran && !(seen && pid == r.exit.PID) {
				l.exit = r.exit
			}
		}
		seen := r.seen
		seen.exits[""], seen.deleted = l.del.PID, true
		t.bygone.add(l.ns, l.id, l.del.PID, seen)
		found = append(found, l)
	}
	return found
}

// publishLate publishes what findLate has found.
func (t *Tasks) publishLate(all []late) {
	ctx := context.WithoutCancel(t.ctx)
	for _, l := range all {
		if l.exit != nil {
			t.cfg.Publish(ctx, l.ns, topicExit, &apievents.TaskExit{
				ContainerId: l.id, Id: l.id, Pid: uint32(l.exit.PID), ExitStatus: l.exit.Status, ExitedAt: timestamp(l.exit.ExitedAt),
			})
		}
		t.cfg.Publish(ctx, l.ns, topicDelete, &apievents.TaskDelete{
			ContainerId: l.id, Pid: uint32(l.del.PID), ExitStatus: l.del.Status, ExitedAt: timestamp(l.del.ExitedAt),
		})
	}
}
