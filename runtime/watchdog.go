package runtime

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Finding is something about tasks, or about what they leave, that is not as it
// has to be.
type Finding struct {
	Kind      string // "shim", "exit", "exec", "record", "task", "sandbox", "bundle", "mount", "oci-state", "cgroup", "socket"
	Namespace string // empty where there is none
	Object    string // the task's id, or a path
	Text      string // what is wrong, and what can be done about it
	Since     time.Time
	// Repaired says what was done about it; empty if it is open.
	Repaired string
}

// watchdog remembers between rounds.
type watchdog struct {
	// round is held during one; two at once would repair twice.
	round lane

	mu       sync.Mutex           // guards what follows
	suspects map[string]time.Time // what may be wrong, by the time when it was seen first
	repairs  []Finding            // the last ones
	graves   []grave              // cgroups of tasks that are gone
}

// grave is where the cgroup of a task was that is gone.
type grave struct {
	name   name
	cgroup string
	since  time.Time
}

// Bounds of what is remembered.
const (
	maxRepairs  = 64
	maxGraves   = 256
	maxFindings = 1024
)

// patrol looks at everything again and again, until the daemon ends.
//
// What is looked at changes all the time, and is not looked at in one instant.
// So nothing is taken for wrong, or repaired, before it has been so in an
// earlier round, too, except for what a task itself says of its standing. A
// repair needs proof and never kills: it takes an exit from its record, closes a
// connection whose shim is dead, and removes what nobody can use any more.
func (t *Tasks) patrol() {
	ticker := time.NewTicker(t.cfg.Watch)
	defer ticker.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-ticker.C:
			t.Inspect(t.ctx)
		}
	}
}

// Inspect looks at all tasks and at what is on the machine because of them,
// repairs what it can prove, and gives what is wrong and what was repaired of
// late. What it sees for the first time is told only once it has been so for a
// while.
func (t *Tasks) Inspect(ctx context.Context) []Finding {
	if t.dog.round.enter(ctx) != nil {
		return nil
	}
	defer t.dog.round.leave()
	l := &inspection{tasks: t, now: t.cfg.Now(), seen: map[string]time.Time{}}
	for _, k := range t.list("") {
		if ctx.Err() != nil {
			return nil
		}
		l.task(ctx, k)
	}
	for _, b := range t.sandboxes() {
		l.box(b)
	}
	l.bundles()
	l.ociStates()
	l.sockets(ctx)
	l.cgroups()
	t.dog.mu.Lock()
	defer t.dog.mu.Unlock()
	t.dog.suspects = l.seen
	for _, f := range l.found {
		if f.Repaired != "" {
			t.dog.repairs = append(t.dog.repairs, f)
		}
	}
	if excess := len(t.dog.repairs) - maxRepairs; excess > 0 {
		t.dog.repairs = slices.Delete(t.dog.repairs, 0, excess)
	}
	open := slices.DeleteFunc(l.found, func(f Finding) bool { return f.Repaired != "" })
	slices.SortFunc(open, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Kind, b.Kind))
	})
	return append(open, t.dog.repairs...)
}

// inspection is one round.
type inspection struct {
	tasks *Tasks
	now   time.Time
	seen  map[string]time.Time // suspects of this round
	found []Finding
}

// ripe notes a suspicion, and tells whether it has been one for long enough.
func (l *inspection) ripe(kind, ns, object string) (since time.Time, ok bool) {
	key := kind + "\x00" + ns + "\x00" + object
	l.tasks.dog.mu.Lock()
	since, known := l.tasks.dog.suspects[key]
	l.tasks.dog.mu.Unlock()
	if !known {
		since = l.now
	}
	l.seen[key] = since
	return since, known && l.now.Sub(since) >= l.tasks.cfg.Watch/3
}

// report adds a finding, and logs it the first time.
func (l *inspection) report(f Finding) {
	if len(l.found) >= maxFindings {
		return
	}
	since, _ := l.ripe("told "+f.Kind, f.Namespace, f.Object)
	if f.Since.IsZero() {
		f.Since = since
	}
	l.found = append(l.found, f)
	log := l.tasks.cfg.Log.With("kind", f.Kind, "namespace", f.Namespace, "object", f.Object)
	switch {
	case f.Repaired != "":
		log.Warn("watchdog repaired", "what", f.Text, "repair", f.Repaired)
	case since.Equal(l.now):
		log.Warn("watchdog found", "what", f.Text)
	}
}
