package images

import (
	"context"
	"sync"
)

// flights lets one at a time do the work named by a key. Who comes later waits,
// and then looks whether it is done; if the first has failed it tries itself,
// with its own context.
type flights struct {
	// mu guards under, which has the keys that somebody works on or waits for.
	mu    sync.Mutex
	under map[string]*flight
}

type flight struct {
	turn  chan struct{} // holds one token while nobody works
	users int           // worker and waiters
}

// enter waits for the turn of key and gives what ends it.
func (f *flights) enter(ctx context.Context, key string) (leave func(), err error) {
	f.mu.Lock()
	one := f.under[key]
	if one == nil {
		if f.under == nil {
			f.under = map[string]*flight{}
		}
		one = &flight{turn: make(chan struct{}, 1)}
		one.turn <- struct{}{}
		f.under[key] = one
	}
	one.users++
	f.mu.Unlock()

	forget := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(f.under, key)
		}
	}
	select {
	case <-one.turn:
		return func() { one.turn <- struct{}{}; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}
