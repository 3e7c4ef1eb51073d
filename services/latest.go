package services

import "sync"

// latest has what is to be told of things until it is taken: of each what came
// last, in the order in which they first came. So whoever tells is never held up by
// whoever takes, and what waits is bounded by the number of things.
type latest[K comparable, M any] struct {
	wake chan struct{} // has room for one: there is something to take

	mu      sync.Mutex // guards what follows
	pending []M
	at      map[K]int // index in pending
}

func newLatest[K comparable, M any]() *latest[K, M] {
	return &latest[K, M]{wake: make(chan struct{}, 1), at: map[K]int{}}
}

// put notes a message in place of an earlier one about the same thing. The zero key
// is of nothing in particular: such a message replaces none.
func (l *latest[K, M]) put(about K, m M) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var nothing K
	if i, ok := l.at[about]; ok && about != nothing {
		l.pending[i] = m
	} else {
		l.at[about] = len(l.pending)
		l.pending = append(l.pending, m)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *latest[K, M]) take() []M {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.pending
	l.pending = nil
	clear(l.at)
	return out
}
