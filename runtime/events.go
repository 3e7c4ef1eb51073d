package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/runtime/record"
)

// Topics of the events that the daemon may publish itself.
const (
	topicExit   = "/tasks/exit"
	topicDelete = "/tasks/delete"
)

// Forwarded takes an event from a shim and passes it on to Config.Forward,
// except an exit or a delete that was published already. An error means that
// the shim is to send it again.
func (t *Tasks) Forwarded(ctx context.Context, e *types.Envelope) error {
	switch _, typ, _ := cutLast(e.GetEvent().GetTypeUrl(), "/"); typ {
	case "containerd.events.TaskExit":
		var exit apievents.TaskExit
		if err := proto.Unmarshal(e.GetEvent().GetValue(), &exit); err != nil {
			return fmt.Errorf("forwarded %s: %w", typ, err)
		}
		exec := exit.GetId()
		if exec == exit.GetContainerId() {
			exec = ""
		}
		t.recordTold(e.GetNamespace(), &exit, exec)
		return t.forwardOnce(ctx, e, exit.GetContainerId(), exec, int(exit.GetPid()))
	case "containerd.events.TaskDelete":
		var del apievents.TaskDelete
		if err := proto.Unmarshal(e.GetEvent().GetValue(), &del); err != nil {
			return fmt.Errorf("forwarded %s: %w", typ, err)
		}
		return t.forwardOnce(ctx, e, del.GetContainerId(), deleteMark, int(del.GetPid()))
	}
	return t.cfg.Forward(ctx, e)
}

// cutLast splits s after the last sep; without one, all of it is the last part.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// deleteMark stands for the delete event where a process's exit event goes by
// its exec id. It is no valid exec id.
const deleteMark = "/delete"

// forwardOnce passes an event on unless it was published, and notes that it is.
func (t *Tasks) forwardOnce(ctx context.Context, e *types.Envelope, id, mark string, pid int) error {
	k := t.find(e.GetNamespace(), id)
	if k == nil || !k.isInit(mark, pid) {
		// Of a task that is gone, or of an earlier one by that name.
		if t.bygone.published(e.GetNamespace(), id, mark, pid) {
			return nil
		}
		return t.cfg.Forward(ctx, e)
	}
	k.try() // a shim that forwards lives
	if err := k.publishing.enter(ctx); err != nil {
		return err
	}
	defer k.publishing.leave()
	if k.published(mark, pid) {
		return nil
	}
	if err := t.cfg.Forward(ctx, e); err != nil {
		return err
	}
	t.markPublished(k, mark, pid)
	if mark != "" && mark != deleteMark {
		k.letGo(mark) // its exit is on record
	}
	return nil
}

// isInit tells whether an event is of this task and not of an earlier one with
// the same id: init's pid, where both are known, has to be that of the event.
func (k *task) isInit(mark string, pid int) bool {
	if mark != "" && mark != deleteMark {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known := k.init.started.PID
	return known == 0 || pid == 0 || known == pid
}

// published tells whether an event was. Needs publishing.
func (k *task) published(mark string, pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if mark == deleteMark {
		return k.seen.deleted
	}
	seen, ok := k.seen.exits[mark]
	return ok && seen == pid
}

// markPublished notes in memory and in the bundle that an event was published.
// Needs publishing.
func (t *Tasks) markPublished(k *task, mark string, pid int) {
	k.mu.Lock()
	if mark == deleteMark {
		k.seen.deleted = true
	} else {
		k.seen.exits[mark] = pid
	}
	crowded := len(k.seen.exits) > max(seenMax, 2*k.seen.kept)
	k.mu.Unlock()
	if crowded {
		k.prune()
	}
	dir := k.files()
	path := filepath.Join(dir, record.SeenDir, mark)
	switch mark {
	case "":
		path = filepath.Join(dir, record.ExitSeenFile)
	case deleteMark:
		path = filepath.Join(dir, record.DeleteSeenFile)
	}
	data := []byte(strconv.Itoa(pid))
	err := os.WriteFile(path, data, 0o600)
	if errors.Is(err, os.ErrNotExist) && mark != "" && mark != deleteMark {
		if err = os.Mkdir(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // the bundle may have gone meanwhile
		t.cfg.Log.Warn("event published, but not noted: it may come twice after a restart",
			"namespace", k.ns, "id", k.id, "path", path, "error", err)
	}
}

// files is where the records of the task are: the bundle, or what is left of it.
func (k *task) files() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shelved != "" {
		return k.shelved
	}
	return k.dir
}

// seenMax is how many marks of execs are kept before those of deleted execs are
// looked for.
const seenMax = 128

// prune drops the marks of execs that have been deleted: an exit event may come
// after the delete. Needs publishing.
func (k *task) prune() {
	there := map[string]bool{"": true}
	for _, exec := range execRecords(k.dir) {
		there[exec] = true
	}
	var dropped []string
	k.mu.Lock()
	for exec := range k.seen.exits {
		if !there[exec] {
			delete(k.seen.exits, exec)
			dropped = append(dropped, exec)
		}
	}
	k.seen.kept = len(k.seen.exits)
	k.mu.Unlock()
	for _, exec := range dropped {
		_ = os.Remove(filepath.Join(k.dir, record.SeenDir, exec)) // it goes with the bundle at the latest
	}
}

// readSeen reads what markPublished noted.
func readSeen(dir string) seen {
	s := seen{exits: map[string]int{}}
	read := func(path, exec string) {
		data, err := os.ReadFile(path)
		if err != nil {
			return
		}
		if pid, err := strconv.Atoi(string(data)); err == nil {
			s.exits[exec] = pid
		}
	}
	read(filepath.Join(dir, record.ExitSeenFile), "")
	entries, _ := os.ReadDir(filepath.Join(dir, record.SeenDir))
	for _, e := range entries {
		read(filepath.Join(dir, record.SeenDir, e.Name()), e.Name())
	}
	_, err := os.Lstat(filepath.Join(dir, record.DeleteSeenFile))
	s.deleted = err == nil
	return s
}

// ended is an exit whose event may have to be published.
type ended struct {
	exec string
	exit record.Exit
}

// announce publishes those exits that were not published, init's last, and then
// the delete, if it is given.
func (t *Tasks) announce(k *task, exits []ended, del *record.Exit) {
	if k.publishing.enter(t.ctx) != nil {
		return // the next daemon does it
	}
	defer k.publishing.leave()
	slices.SortFunc(exits, func(a, b ended) int {
		if (a.exec == "") != (b.exec == "") {
			if a.exec == "" {
				return 1
			}
			return -1
		}
		return a.exit.ExitedAt.Compare(b.exit.ExitedAt)
	})
	ctx := context.WithoutCancel(t.ctx)
	for _, e := range exits {
		if k.published(e.exec, e.exit.PID) {
			continue
		}
		id := e.exec
		if id == "" {
			id = k.id
		}
		t.cfg.Publish(ctx, k.ns, topicExit, &apievents.TaskExit{
			ContainerId: k.id, Id: id, Pid: uint32(e.exit.PID), ExitStatus: e.exit.Status,
			ExitedAt: timestamp(e.exit.ExitedAt),
		})
		t.markPublished(k, e.exec, e.exit.PID)
	}
	if del == nil || k.published(deleteMark, 0) {
		return
	}
	k.mu.Lock()
	k.seen.deleted = true // before somebody hears of it and makes the task anew
	k.mu.Unlock()
	t.cfg.Publish(ctx, k.ns, topicDelete, &apievents.TaskDelete{
		ContainerId: k.id, Pid: uint32(del.PID), ExitStatus: del.Status, ExitedAt: timestamp(del.ExitedAt),
	})
	t.markPublished(k, deleteMark, del.PID)
}

// bygone remembers for a while which events of tasks that are gone were
// published: what a shim sends again last thing must not be published again.
type bygone struct {
	mu    sync.Mutex // guards the rest
	ring  [bygoneMax]epitaph
	next  int
	count int
}

const bygoneMax = 256

type epitaph struct {
	ns, id string
	pid    int
	seen   seen
}

func (b *bygone) add(ns, id string, pid int, s seen) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ring[b.next] = epitaph{ns, id, pid, s}
	b.next = (b.next + 1) % len(b.ring)
	b.count = min(b.count+1, len(b.ring))
}

func (b *bygone) published(ns, id, mark string, pid int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.count {
		e := &b.ring[i]
		if e.ns != ns || e.id != id {
			continue
		}
		if mark == deleteMark && e.pid == pid && e.seen.deleted {
			return true
		}
		if seen, ok := e.seen.exits[mark]; ok && mark != deleteMark && seen == pid {
			return true
		}
	}
	return false
}
