package gc

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/metadata"
)

// Defaults of a Scheduler.
const (
	DefaultStartupDelay = 100 * time.Millisecond
	DefaultDelay        = 100 * time.Millisecond
	DefaultBudget       = 0.02
)

const (
	// patience is how many delays a run waits at most for deletes to pause.
	patience = 20
	// maxPause bounds the pause after a run, whatever its length.
	maxPause = time.Minute
	// firstRetry and lastRetry bound the pause after a run that failed.
	firstRetry, lastRetry = time.Second, time.Minute
	// maxSleep bounds how long the wall clock is trusted to go on as it does.
	maxSleep = 10 * time.Minute
)

// Store is what is collected; *metadata.DB is one. Its hooks are called from
// within commits.
type Store interface {
	Collect(ctx context.Context) (metadata.Report, error)
	OnDelete(hook func())
	OnExpire(hook func(at time.Time))
}

// Scheduler runs collections, never two at once. Only Store has to be set.
type Scheduler struct {
	Store Store
	Log   *slog.Logger // default: none

	StartupDelay time.Duration // from the start of Run to the first collection
	Delay        time.Duration // from the last of several deletes to the collection
	// Budget is the share of time that collections may take. It does not hold
	// up those that somebody waits for.
	Budget float64

	once  sync.Once
	wake  chan struct{} // something below has changed
	ended chan struct{} // closed when Run returns

	// mu guards what follows.
	mu      sync.Mutex
	waiters []chan answer // who wants a run that has not started yet
	first   time.Time     // first delete since the last run started; zero without one
	last    time.Time     // last one
	expiry  time.Time     // when the next thing ends by itself; zero if none is known
}

type answer struct {
	report metadata.Report
	err    error
}

func (s *Scheduler) init() {
	s.once.Do(func() {
		s.wake = make(chan struct{}, 1)
		s.ended = make(chan struct{})
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		if s.StartupDelay == 0 {
			s.StartupDelay = DefaultStartupDelay
		}
		if s.Delay == 0 {
			s.Delay = DefaultDelay
		}
		if s.Budget == 0 {
			s.Budget = DefaultBudget
		}
	})
}

// Collect waits for a collection that starts after the call, and gives its
// report. It is Unavailable once Run has ended.
func (s *Scheduler) Collect(ctx context.Context) (metadata.Report, error) {
	s.init()
	wait := make(chan answer, 1)
	s.mu.Lock()
	s.waiters = append(s.waiters, wait)
	s.mu.Unlock()
	s.nudge()
	select {
	case a := <-wait:
		return a.report, a.err
	case <-ctx.Done():
		return metadata.Report{}, ctx.Err()
	case <-s.ended:
		select {
		case a := <-wait:
			return a.report, a.err
		default:
			return metadata.Report{}, fmt.Errorf("collect: the scheduler has ended: %w", errdefs.ErrUnavailable)
		}
	}
}

func (s *Scheduler) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deleted is the store's hook.
func (s *Scheduler) deleted() {
	s.mu.Lock()
	s.last = time.Now()
	if s.first.IsZero() {
		s.first = s.last
	}
	s.mu.Unlock()
	s.nudge()
}

// expires is the store's hook.
func (s *Scheduler) expires(at time.Time) {
	s.mu.Lock()
	s.expiry = earlier(s.expiry, at)
	s.mu.Unlock()
	s.nudge()
}

// earlier is the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Run collects when there is reason to, until ctx ends; it then gives nil. It
// may be called once.
func (s *Scheduler) Run(ctx context.Context) error {
	s.init()
	defer close(s.ended)
	s.Store.OnDelete(s.deleted)
	s.Store.OnExpire(s.expires)
	// What was there before the hooks were is found by the run at the start.
	startup := time.Now().Add(s.StartupDelay)
	var notBefore time.Time // by budget, or after a failure
	retry := firstRetry
	for {
		if !s.sleep(ctx, startup, notBefore) {
			return nil
		}
		startup = time.Time{}
		report, err := s.collect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.Log.Error("collection failed", slog.Any("error", err), slog.Duration("retry_after", retry))
			startup = time.Now().Add(retry)
			notBefore = startup
			retry = min(2*retry, lastRetry)
			continue
		}
		retry = firstRetry
		rest := time.Duration(float64(report.Duration) * (1/s.Budget - 1))
		notBefore = time.Now().Add(min(rest, maxPause))
	}
}

// sleep waits until a run is due, and tells whether it is: it isn't when ctx
// ends.
func (s *Scheduler) sleep(ctx context.Context, startup, notBefore time.Time) bool {
	for {
		due := s.due(startup, notBefore)
		wait := maxSleep
		if !due.IsZero() {
			wait = min(wait, time.Until(due))
		}
		if wait <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// due is when the next run has to start; zero if there is no reason for one.
func (s *Scheduler) due(startup, notBefore time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiters) > 0 {
		return time.Now()
	}
	due := startup
	if !s.first.IsZero() {
		pause := s.last.Add(s.Delay)
		due = earlier(due, earlier(pause, s.first.Add(patience*s.Delay)))
	}
	due = earlier(due, s.expiry)
	if !due.IsZero() && due.Before(notBefore) {
		due = notBefore
	}
	return due
}

// collect runs one collection and answers those who waited before it started.
func (s *Scheduler) collect(ctx context.Context) (metadata.Report, error) {
	s.mu.Lock()
	waiters, expiry := s.waiters, s.expiry
	s.waiters, s.expiry, s.first, s.last = nil, time.Time{}, time.Time{}, time.Time{}
	s.mu.Unlock()

	report, err := s.Store.Collect(ctx)
	next := report.NextExpiry
	if err != nil {
		next = expiry // as before, with the pause after a failure
	}
	if !next.IsZero() {
		s.expires(next)
	}
	if report.More && err == nil {
		s.deleted()
	}
	for _, wait := range waiters {
		wait <- answer{report, err}
	}
	if err == nil {
		s.Log.Debug("collected",
			slog.Int64("content", report.Content), slog.Int64("snapshots", report.Snapshots),
			slog.Int64("images", report.Images), slog.Int64("leases", report.Leases), slog.Int64("ingests", report.Ingests),
			slog.Duration("duration", report.Duration), slog.Duration("longest_stall", report.LongestStall))
	}
	return report, err
}
