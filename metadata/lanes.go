package metadata

import (
	"context"
	"sync"
)

// lanes are one lock per key, made when asked for and forgotten when free. Work
// under a lane may do input and output.
type lanes struct {
	// mu guards held.
	mu   sync.Mutex
	held map[string]*lane
}

type lane struct {
	token chan struct{} // full while the lane is free
	users int           // holder and waiters
}

// lock waits for the lane of key and gives what frees it.
func (l *lanes) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	one := l.held[key]
	if one == nil {
		if l.held == nil {
			l.held = map[string]*lane{}
		}
		one = &lane{token: make(chan struct{}, 1)}
		one.token <- struct{}{}
		l.held[key] = one
	}
	one.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case <-one.token:
		return func() { one.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
