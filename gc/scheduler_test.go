package gc

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/metadata"
)

// fakeStore notes when it is collected. It runs in a synctest bubble, so times
// are exact.
type fakeStore struct {
	mu      sync.Mutex
	start   time.Time
	runs    []time.Duration // when they started, from start
	running int
	overlap bool
	takes   time.Duration
	next    time.Time
	more    bool
	fail    error

	deleted func()
	expires func(time.Time)
}

func (f *fakeStore) OnDelete(hook func())          { f.deleted = hook }
func (f *fakeStore) OnExpire(hook func(time.Time)) { f.expires = hook }

func (f *fakeStore) Collect(ctx context.Context) (metadata.Report, error) {
	f.mu.Lock()
	f.runs = append(f.runs, time.Since(f.start))
	f.running++
	f.overlap = f.overlap || f.running > 1
	report := metadata.Report{Duration: f.takes, NextExpiry: f.next, More: f.more, Content: int64(len(f.runs))}
	takes, fail := f.takes, f.fail
	f.more, f.next = false, time.Time{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.running--
	}()
	select {
	case <-time.After(takes):
		return report, fail
	case <-ctx.Done():
		return metadata.Report{}, ctx.Err()
	}
}

func (f *fakeStore) at() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.overlap {
		return []time.Duration{-1}
	}
	return append([]time.Duration(nil), f.runs...)
}

// run starts a scheduler in a bubble, hands over after its start, and ends it.
func run(t *testing.T, store *fakeStore, body func(t *testing.T, s *Scheduler)) {
	synctest.Test(t, func(t *testing.T) {
		store.start = time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		s := &Scheduler{Store: store}
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		body(t, s)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := s.Collect(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("collect after the end: %v", err)
		}
	})
}

func expect(t *testing.T, store *fakeStore, want ...time.Duration) {
	t.Helper()
	synctest.Wait()
	got := store.at()
	if len(got) != len(want) {
		t.Fatalf("runs at %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("runs at %v, want %v", got, want)
		}
	}
}

const startup = DefaultStartupDelay

func TestStartupThenNothing(t *testing.T) {
	store := &fakeStore{}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(24 * time.Hour)
		expect(t, store, startup)
	})
}

func TestDeletesAreDebounced(t *testing.T) {
	store := &fakeStore{}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(time.Second)
		for range 5 {
			store.deleted()
			time.Sleep(DefaultDelay / 2)
		}
		time.Sleep(time.Second)
		expect(t, store, startup, time.Second+4*DefaultDelay/2+DefaultDelay)
	})
}

func TestDeletesWithoutPauseDontStarve(t *testing.T) {
	store := &fakeStore{}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(time.Second)
		for range 3 * patience {
			store.deleted()
			time.Sleep(DefaultDelay / 2)
		}
		if n := len(store.at()); n != 2 {
			t.Fatalf("%d runs", n)
		}
		if got, want := store.at()[1], time.Second+patience*DefaultDelay; got != want {
			t.Fatalf("run at %v, want %v", got, want)
		}
	})
}

func TestExpiry(t *testing.T) {
	store := &fakeStore{}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(time.Second)
		// A lease of ten seconds, and one that ends before it.
		store.expires(store.start.Add(11 * time.Second))
		store.expires(store.start.Add(6 * time.Second))
		store.expires(store.start.Add(time.Hour))
		store.mu.Lock()
		store.next = store.start.Add(11 * time.Second) // the store knows the rest
		store.mu.Unlock()
		time.Sleep(30 * time.Second)
		expect(t, store, startup, 6*time.Second, 11*time.Second)
	})
}

func TestExpiryFarAway(t *testing.T) {
	store := &fakeStore{}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(time.Second)
		store.expires(store.start.Add(24 * time.Hour))
		time.Sleep(25 * time.Hour)
		expect(t, store, startup, 24*time.Hour)
	})
}

func TestBudget(t *testing.T) {
	store := &fakeStore{takes: 100 * time.Millisecond}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(startup + store.takes)
		store.deleted()
		time.Sleep(time.Minute)
		// 100 ms are 2% of 5 s.
		expect(t, store, startup, startup+5*time.Second)
	})
}

// TestSync: who waits gets a run that started after the call, without regard to
// the budget, and all who wait at once share it.
func TestSync(t *testing.T) {
	store := &fakeStore{takes: time.Second}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(startup + store.takes/2) // in the middle of the first run
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				report, err := s.Collect(t.Context())
				if err != nil || report.Content != 2 {
					t.Errorf("run %d, %v", report.Content, err)
				}
			})
		}
		group.Wait()
		expect(t, store, startup, startup+time.Second)
	})
}

func TestSyncGivesUp(t *testing.T) {
	store := &fakeStore{takes: time.Hour}
	run(t, store, func(t *testing.T, s *Scheduler) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Collect(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestFailureIsRetried(t *testing.T) {
	store := &fakeStore{fail: errors.New("disk on fire")}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(startup + time.Millisecond)
		store.deleted()
		time.Sleep(2 * time.Second)
		if _, err := s.Collect(t.Context()); err == nil || err.Error() != "disk on fire" {
			t.Errorf("who waits is told: %v", err)
		}
		store.mu.Lock()
		store.fail = nil
		store.mu.Unlock()
		time.Sleep(time.Hour)
		expect(t, store, startup, startup+time.Second, startup+2*time.Second+time.Millisecond, startup+6*time.Second+time.Millisecond)
	})
}

func TestMore(t *testing.T) {
	store := &fakeStore{more: true}
	run(t, store, func(t *testing.T, s *Scheduler) {
		time.Sleep(time.Minute)
		expect(t, store, startup, startup+DefaultDelay)
	})
}
