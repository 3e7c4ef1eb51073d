package runtime

import "context"

// lane lets one at a time through. Unlike a mutex it may be held over I/O, and
// waiting for it ends with a context.
type lane chan struct{}

func newLane() lane { return make(lane, 1) }

func (l lane) enter(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lane) leave() { <-l }
