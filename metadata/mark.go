package metadata

import (
	"context"
	"time"
)

// level is how far a mark reaches.
type level uint8

const (
	unmarked level = iota
	flat           // kept, and what it refers to by its nature
	full           // and what its labels refer to
)

// barrier is what writers changed while a collection runs: the rows they wrote,
// in no order. Only the committer's goroutine touches it.
type barrier struct {
	touched map[node]struct{}
	count   int // all there ever were
}

func newBarrier() *barrier { return &barrier{touched: map[node]struct{}{}} }

func (b *barrier) add(nodes []node) {
	for _, n := range nodes {
		b.touched[n] = struct{}{}
	}
	b.count += len(nodes)
}

// take gives what was added since the last time.
func (b *barrier) take() map[node]struct{} {
	touched := b.touched
	b.touched = map[node]struct{}{}
	return touched
}

// marker finds what is alive.
type marker struct {
	now  time.Time
	held func(ns, ref string) bool // ingests that a writer has

	marks map[node]level
	// back is who lives while the key does, by labels of theirs. Labels written
	// since the mark began don't count here: who got them is spared anyway.
	back  map[node][]node
	queue []node    // marked, and what they refer to is not yet
	next  time.Time // when the next lease, image or ingest ends
	pace  pace

	// For who asks what keeps what, or what would go without something.
	at      node          // what is followed just now
	via     map[node]node // by what each was marked; nil: nobody asks
	without map[node]bool // roots that are to count as none
}

func newMarker(now time.Time, held func(ns, ref string) bool) *marker {
	return &marker{now: now, held: held, marks: map[node]level{}, back: map[node][]node{}}
}

// mark notes that n is alive. A higher level replaces a lower one.
func (m *marker) mark(n node, to level) {
	if m.marks[n] >= to {
		return
	}
	m.marks[n] = to
	m.queue = append(m.queue, n)
	if m.via != nil {
		m.via[n] = m.at
	}
}

// again follows n once more, whether marked or not: it has changed.
func (m *marker) again(n node) {
	m.marks[n] = full
	m.queue = append(m.queue, n)
}

// roots marks what is alive by itself, and learns all back references.
func (m *marker) roots(ctx context.Context, tx *Tx) error {
	for kind := kindContainer; kind <= kindContent; kind++ {
		count := 0
		for key, value := range tx.scan(nodeBuckets[kind], "") {
			if count++; count%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			m.pace.step()
			ns, rest, _ := cut(string(key))
			n := node{kind, ns, rest}
			f, err := look(n, value)
			if err != nil {
				return err
			}
			for _, named := range f.back {
				m.back[named] = append(m.back[named], n)
			}
			if m.isRoot(n, f) {
				m.marks[n] = full
				delete(m.via, n)
				m.step(tx, n, f)
			}
		}
	}
	// By now all back references are known, and what they name may be marked.
	for named, objects := range m.back {
		if m.marks[named] == full && tx.row(named) != nil {
			m.at = named
			for _, n := range objects {
				m.mark(n, full)
			}
		}
	}
	return nil
}

// isRoot tells whether a row is alive by itself, and notes when that ends.
func (m *marker) isRoot(n node, f facts) bool {
	if m.without[n] {
		return false
	}
	switch n.kind {
	case kindContainer:
		return true
	case kindImage, kindLease:
		return f.expires.IsZero() || m.endsLater(f.expires)
	case kindIngest:
		if m.held(n.ns, n.key) {
			return true
		}
		return !f.expires.IsZero() && m.endsLater(f.expires)
	}
	return f.root
}

func (m *marker) endsLater(at time.Time) bool {
	if !at.After(m.now) {
		return false
	}
	if m.next.IsZero() || at.Before(m.next) {
		m.next = at
	}
	return true
}

// follow marks all that the marked refer to.
func (m *marker) follow(ctx context.Context, tx *Tx) error {
	for count := 1; len(m.queue) > 0; count++ {
		if count%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		m.pace.step()
		n := m.queue[len(m.queue)-1]
		m.queue = m.queue[:len(m.queue)-1]
		value := tx.row(n)
		if value == nil {
			continue // named, but not there: it keeps nothing alive
		}
		f, err := look(n, value)
		if err != nil {
			return err
		}
		m.step(tx, n, f)
	}
	return nil
}

// step marks what one row refers to.
func (m *marker) step(tx *Tx, n node, f facts) {
	m.at = n
	if n.kind == kindLease {
		m.followLease(tx, n, f)
		return
	}
	to := m.marks[n]
	for _, other := range f.fixed {
		m.mark(other, to)
	}
	if to < full {
		return
	}
	for _, other := range f.labeled {
		m.mark(other, full)
	}
	for _, c := range f.conds {
		if m.recent(tx, c) {
			m.mark(c.snapshot, full)
		}
	}
	for _, other := range m.back[n] {
		m.mark(other, full)
	}
}

// followLease marks what a lease holds.
func (m *marker) followLease(tx *Tx, n node, f facts) {
	to := full
	if f.flat {
		to = flat
	}
	tx.eachHeld(n.ns, n.key, func(resource, id string) {
		if held, ok := heldNode(n.ns, resource, id); ok {
			m.mark(held, to)
		}
	})
	if f.flat {
		return
	}
	for _, other := range f.labeled {
		m.mark(other, full)
	}
}

// recent tells whether a condition holds.
func (m *marker) recent(tx *Tx, c condition) bool {
	value := tx.row(c.snapshot)
	if value == nil {
		return false
	}
	f, err := look(c.snapshot, value)
	return err != nil || !f.usedAt.IsZero() && m.now.Sub(f.usedAt) < c.age
}

// row gives the bytes of a row; nil if there is none.
func (tx *Tx) row(n node) []byte {
	return tx.bolt.Bucket([]byte(nodeBuckets[n.kind])).Get([]byte(path(n.ns, n.key)))
}

// changed marks rows that writers touched, and follows them as they are now,
// also those that were followed before.
func (m *marker) changed(ctx context.Context, tx *Tx, touched map[node]struct{}) error {
	for n := range touched {
		if tx.row(n) != nil {
			m.again(n)
		}
	}
	return m.follow(ctx, tx)
}
