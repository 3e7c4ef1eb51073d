package runtime

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sandboxes lists those of all namespaces, in order.
func (t *Tasks) sandboxes() []*box {
	t.mu.Lock()
	all := make([]*box, 0, len(t.boxes))
	for _, b := range t.boxes {
		all = append(all, b)
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b *box) int { return strings.Compare(a.ns+"/"+a.id, b.ns+"/"+b.id) })
	return all
}

// box looks how a sandbox stands, and has its shim asked for a sign of life. One
// that was stopped is as it has to be; one whose shim has died, or hangs, is not.
func (l *inspection) box(b *box) {
	v := b.view()
	finding := func(since time.Time, format string, args ...any) {
		l.report(Finding{Kind: "sandbox", Namespace: b.ns, Object: b.id, Since: since, Text: fmt.Sprintf(format, args...)})
	}
	_, over := b.ended()
	switch {
	case v.stand == stopped:
		finding(time.Time{}, "has ended: %s; its containers run on, and the sandbox controller's Shutdown removes it", v.reason)
	case v.stand == adopting && v.judged:
		finding(time.Time{}, "not known how it stands: %s; it is tried again%s", v.reason, hungAdvice(v.shimPID))
	case v.conn == nil:
	case v.conn.closed():
		if since, ok := l.ripe("sandbox shim", b.ns, b.id); ok && over {
			finding(since, "was stopped, and its shim has died; the sandbox controller's Shutdown removes it")
		}
	default:
		if silent := v.conn.silentFor(); silent > 0 {
			finding(l.now.Add(-silent), "%s has not answered for %s%s", shimName(v.shimPID), silent.Round(time.Second), hungAdvice(v.shimPID))
		}
		l.tasks.pokeBox(b, v.conn)
	}
}
