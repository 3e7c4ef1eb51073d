package scenario

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/berthd/berth/bench/internal/report"

	apievents "github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

const eventTopic = "/bench/tick"

func eventsScenario() *Scenario {
	return &Scenario{
		Name:   "events",
		Title:  "Publish and subscribe: latency of single events, rate of bursts, and completeness and order for a slow subscriber",
		Rounds: func(p *Params) int { return p.EventRounds },
		Round: func(ctx context.Context, r *Run, round int) error {
			if err := r.eventLatency(ctx, r.P.EventLatency/r.P.EventRounds); err != nil {
				return err
			}
			if err := r.eventBurst(ctx); err != nil {
				return err
			}
			return r.eventSlow(ctx)
		},
	}
}

// subscription receives the benchmark's events.
type subscription struct {
	ch     <-chan *coreevents.Envelope
	errs   <-chan error
	cancel context.CancelFunc
}

// subscribe returns once the subscription is known to be live.
func (r *Run) subscribe(ctx context.Context) (*subscription, error) {
	sub, cancel := context.WithCancel(ctx)
	s := &subscription{cancel: cancel}
	s.ch, s.errs = r.D.Client.EventService().Subscribe(sub, `topic=="`+eventTopic+`"`)
	for {
		if err := r.publish(ctx, -1); err != nil {
			return nil, err
		}
		select {
		case <-s.ch:
			// Swallow other probes that are still under way.
			for {
				select {
				case <-s.ch:
					continue
				case <-time.After(100 * time.Millisecond):
				}
				return s, nil
			}
		case err := <-s.errs:
			return nil, fmt.Errorf("subscribe: %w", err)
		case <-ctx.Done():
			return nil, fmt.Errorf("subscribe: no event arrives: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (r *Run) publish(ctx context.Context, seq int) error {
	ev := &apievents.ContainerCreate{ID: strconv.Itoa(seq), Image: "bench"}
	if err := r.D.Client.EventService().Publish(ctx, eventTopic, ev); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// next returns the sequence number of the next event.
func (s *subscription) next(ctx context.Context) (int, error) {
	select {
	case env := <-s.ch:
		v, err := typeurl.UnmarshalAny(env.Event)
		if err != nil {
			return 0, err
		}
		ev, ok := v.(*apievents.ContainerCreate)
		if !ok {
			return 0, fmt.Errorf("unexpected event %T", v)
		}
		return strconv.Atoi(ev.ID)
	case err := <-s.errs:
		return 0, fmt.Errorf("subscription ended: %v", err)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (r *Run) eventLatency(ctx context.Context, n int) error {
	s, err := r.subscribe(ctx)
	if err != nil {
		return err
	}
	defer s.cancel()
	for i := range n {
		begin := time.Now()
		if err := r.publish(ctx, i); err != nil {
			return err
		}
		got, err := s.next(ctx)
		if err != nil {
			return err
		}
		r.add("publish to receive", "µs", report.Lower, float64(time.Since(begin).Nanoseconds())/1e3)
		if got != i {
			return fmt.Errorf("received event %d, not %d", got, i)
		}
	}
	return nil
}

// eventBurst measures how fast events get through with one and with eight
// publishers.
func (r *Run) eventBurst(ctx context.Context) error {
	for _, workers := range []int{1, 8} {
		s, err := r.subscribe(ctx)
		if err != nil {
			return err
		}
		n := r.P.EventBurst
		done := make(chan error, 1)
		begin := time.Now()
		go func() {
			for range n {
				if _, err := s.next(ctx); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		if err := parallel(workers, n, func(i int) error { return r.publish(ctx, i) }); err != nil {
			s.cancel()
			return err
		}
		err = <-done
		s.cancel()
		if err != nil {
			return fmt.Errorf("burst: %w", err)
		}
		name := fmt.Sprintf("events through, %d publishers", workers)
		if workers == 1 {
			name = "events through, 1 publisher"
		}
		r.addRate(name, n, time.Since(begin))
	}
	return nil
}

// eventSlow checks that a subscriber that sleeps still gets every event, in
// order.
func (r *Run) eventSlow(ctx context.Context) error {
	s, err := r.subscribe(ctx)
	if err != nil {
		return err
	}
	defer s.cancel()
	n := r.P.EventBurst
	published := make(chan error, 1)
	go func() {
		for i := range n {
			if err := r.publish(ctx, i); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	seen, disorder, last := 0, 0, -1
	for seen < n {
		if seen < 200 {
			time.Sleep(5 * time.Millisecond)
		}
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		got, err := s.next(wait)
		cancel()
		if err != nil {
			r.note("slow subscriber: after %d of %d events: %v", seen, n, err)
			break
		}
		seen++
		if got < last {
			disorder++
		}
		last = got
	}
	r.add("slow subscriber: events lost", "count", report.Lower, float64(n-seen))
	r.add("slow subscriber: events out of order", "count", report.Lower, float64(disorder))
	return <-published
}
