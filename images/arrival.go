package images

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/berthd/berth/content"
)

// arrival is a blob on its way into the store, and whoever reads it meanwhile. Those
// bytes that are not there yet are waited for.
type arrival struct {
	// mu guards what follows.
	mu      sync.Mutex
	offset  int64          // bytes that can be read from coming
	changed chan struct{}  // closed when any of this changes, and made anew
	coming  content.Reader // reads what comes; nil: nothing can be read before the end
	open    opener         // opens the blob once it is there
	failed  error          // it does not come
}

// opener opens a blob.
type opener func() (content.Reader, error)

func newArrival() *arrival { return &arrival{changed: make(chan struct{})} }

// change changes what is known, and wakes whoever waits for that.
func (a *arrival) change(by func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	by()
	close(a.changed)
	a.changed = make(chan struct{})
}

// begin lets bytes be read as they come, from a reader that is the arrival's to close.
func (a *arrival) begin(coming content.Reader) { a.change(func() { a.coming = coming }) }

// reach tells that the first n bytes are there.
func (a *arrival) reach(n int64) { a.change(func() { a.offset = n }) }

// end tells that all is there, to be opened by open, or why it isn't.
func (a *arrival) end(open opener, err error) {
	a.change(func() {
		if err != nil {
			a.failed = err
			return
		}
		a.open = open
	})
}

// close closes what is open. There must be no follower any more.
func (a *arrival) close() error {
	if a.coming == nil {
		return nil
	}
	return a.coming.Close()
}

// wait waits until the blob is in the store.
func (a *arrival) wait(ctx context.Context) error {
	for {
		a.mu.Lock()
		open, failed, changed := a.open, a.failed, a.changed
		a.mu.Unlock()
		if open != nil || failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follower reads an arrival from its start to its end.
type follower struct {
	ctx    context.Context
	a      *arrival
	at     int64
	stored content.Reader // nil until all is there
}

// follow gives a reader of the whole blob, which must be closed.
func (a *arrival) follow(ctx context.Context) *follower { return &follower{ctx: ctx, a: a} }

// Read waits for bytes. That they don't come is the error of the fetch.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		from, there, err := f.await()
		if err != nil {
			return 0, err
		}
		want := p
		if f.stored == nil && int64(len(want)) > there-f.at {
			want = want[:there-f.at]
		}
		n, err := from.ReadAt(want, f.at)
		f.at += int64(n)
		if n > 0 {
			return n, nil // an error comes again
		}
		if f.stored != nil || !errors.Is(err, io.EOF) {
			return 0, err
		}
		// The bytes were dropped, as their flush failed: the fetch says why, or has
		// them again.
		if err := f.a.wait(f.ctx); err != nil {
			return 0, err
		}
	}
}

// await waits for a byte after those that were read, or the end, and gives what has
// it.
func (f *follower) await() (from content.Reader, there int64, err error) {
	if f.stored != nil {
		return f.stored, 0, nil
	}
	for {
		f.a.mu.Lock()
		there, coming, open, failed, changed := f.a.offset, f.a.coming, f.a.open, f.a.failed, f.a.changed
		f.a.mu.Unlock()
		switch {
		case failed != nil:
			return nil, 0, failed
		case open != nil:
			f.stored, err = open()
			return f.stored, 0, err
		case coming != nil && there > f.at:
			return coming, there, nil
		}
		select {
		case <-changed:
		case <-f.ctx.Done():
			return nil, 0, context.Cause(f.ctx)
		}
	}
}

// Close closes what the follower has opened.
func (f *follower) Close() error {
	if f.stored == nil {
		return nil
	}
	return f.stored.Close()
}
