package images

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		leave, err := f.enter(bg, "a")
		if err != nil {
			t.Fatal(err)
		}
		if other, err := f.enter(bg, "b"); err != nil {
			t.Fatal(err)
		} else {
			other() // keys don't wait for each other
		}
		reason := errors.New("the reason")
		ctx, cancel := context.WithCancelCause(bg)
		got := make(chan error)
		go func() { _, err := f.enter(ctx, "a"); got <- err }()
		next := make(chan func())
		go func() {
			leave, err := f.enter(bg, "a")
			if err != nil {
				t.Error(err)
			}
			next <- leave
		}()
		synctest.Wait()
		cancel(reason)
		if err := <-got; !errors.Is(err, reason) {
			t.Error(err)
		}
		select {
		case <-next:
			t.Fatal("two at once")
		default:
		}
		leave()
		(<-next)()
		if len(f.under) != 0 {
			t.Errorf("%d are left", len(f.under))
		}
	})
}
