package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/filter"
)

// readAhead is how much of the journal a subscription that is behind holds in
// memory. One that is not behind holds nothing.
const readAhead = 16 << 10

// Subscription is a place in the journal that moves on with each call of Next.
// Next is for one goroutine at a time; Close may be called by any.
type Subscription struct {
	journal *Journal
	filter  filter.Filter

	closing sync.Once
	closed  chan struct{}

	// What follows belongs to Next.
	want   uint64 // lowest number that is still to be given
	at     *segment
	offset int64  // of what is read next into ahead
	ahead  []byte // read, not yet given
}

// Subscribe starts a subscription to the events that one of the filters
// matches, of all namespaces: fields are namespace, topic and event.FIELD. With
// since 0 it gives what comes from now on, else every event with a higher
// number. InvalidArgument for a bad filter; OutOfRange if some of those events
// are no longer kept, or if the journal has not come to since.
func (j *Journal) Subscribe(filters []string, since uint64) (*Subscription, error) {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	s := &Subscription{journal: j, filter: f, closed: make(chan struct{})}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, errJournalClosed
	}
	if since == 0 {
		s.want, s.at = j.next, j.segments[len(j.segments)-1]
		s.offset = s.at.size
		return s, nil
	}
	if since >= j.next {
		return nil, fmt.Errorf("subscribe to events since %d: the journal ends at %d: %w",
			since, j.next-1, errdefs.ErrOutOfRange)
	}
	s.want = since + 1
	if s.want < j.segments[0].first {
		return nil, fmt.Errorf("subscribe to events since %d: the oldest that is kept is %d: %w",
			since, j.segments[0].first, errdefs.ErrOutOfRange)
	}
	s.stand(j.segments)
	return s, nil
}

// stand puts the cursor at the start of the segment that has the wanted number.
func (s *Subscription) stand(segments []*segment) {
	s.at, s.offset, s.ahead = segments[0], int64(len(magic)), nil
	for _, later := range segments[1:] {
		if later.first > s.want {
			break
		}
		s.at = later
	}
}

// Next waits for the next event that matches, and gives it with its number.
// Errors end the subscription: ctx's own; Canceled after Close; Unavailable
// when the journal is closed; OutOfRange if what comes next was removed before
// it was read; DataLoss if it can't be read back.
func (s *Subscription) Next(ctx context.Context) (*types.Envelope, uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		select {
		case <-s.closed:
			return nil, 0, errSubscriptionClosed
		default:
		}
		number, body, err := s.read(ctx)
		if err != nil {
			return nil, 0, err
		}
		if number < s.want {
			continue
		}
		s.want = number + 1
		envelope := &types.Envelope{}
		if err := proto.Unmarshal(body, envelope); err != nil {
			return nil, 0, fmt.Errorf("event %d: %w: %w", number, err, errdefs.ErrDataLoss)
		}
		if s.filter.Match(&fields{envelope: envelope}) {
			return envelope, number, nil
		}
	}
}

// Close ends the subscription and whoever waits in Next. It does not wait.
func (s *Subscription) Close() { s.closing.Do(func() { close(s.closed) }) }

// read gives the record at the cursor and moves the cursor behind it.
func (s *Subscription) read(ctx context.Context) (number uint64, body []byte, err error) {
	for {
		number, body, length, err := unseal(s.ahead)
		if err == nil {
			s.ahead = s.ahead[length:]
			return number, body, nil
		}
		if errors.Is(err, errDamaged) {
			return 0, nil, s.damaged(err)
		}
		if err := s.fill(ctx); err != nil {
			return 0, nil, err
		}
	}
}

// fill reads more of the journal into ahead, once there is more.
func (s *Subscription) fill(ctx context.Context) error {
	end, err := s.await(ctx)
	if err != nil {
		return err
	}
	n := int64(readAhead)
	if length, err := measure(s.ahead); err == nil {
		n = max(n, int64(length))
	}
	start := s.offset - int64(len(s.ahead)) // of the record at the cursor
	n = min(n, end-start)
	if n <= int64(len(s.ahead)) {
		return s.damaged(errShort)
	}
	ahead := make([]byte, n)
	if _, err := s.at.file.ReadAt(ahead, start); errors.Is(err, os.ErrClosed) {
		return s.overtaken()
	} else if err != nil {
		return s.damaged(err)
	}
	s.ahead, s.offset = ahead, start+n
	return nil
}

// await waits until the cursor's segment has bytes behind offset, or goes on to
// the next segment, and tells where the readable bytes end.
func (s *Subscription) await(ctx context.Context) (end int64, err error) {
	for {
		end, changed, err := s.look()
		if err != nil || changed == nil {
			return end, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.closed:
			return 0, errSubscriptionClosed
		}
	}
}

// look is await without waiting: if there is nothing to read yet, it gives the
// channel to wait on.
func (s *Subscription) look() (end int64, changed <-chan struct{}, err error) {
	j := s.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, nil, errJournalClosed
	}
	if s.at.first < j.segments[0].first {
		if s.want < j.segments[0].first {
			return 0, nil, s.overtakenBy(j.segments[0].first)
		}
		s.stand(j.segments) // all of the removed one had been read
	}
	if s.offset < s.at.size || len(s.ahead) > 0 {
		return s.at.size, nil, nil
	}
	s.ahead = nil // a subscriber that is not behind holds no memory
	for _, later := range j.segments {
		if later.first > s.at.first {
			s.at, s.offset = later, int64(len(magic))
			break
		}
	}
	if s.offset < s.at.size {
		return s.at.size, nil, nil
	}
	return 0, j.changed(), nil
}

// overtaken is the error of one whose segment was removed under its hands.
func (s *Subscription) overtaken() error {
	j := s.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errJournalClosed
	}
	return s.overtakenBy(j.segments[0].first)
}

func (s *Subscription) overtakenBy(oldest uint64) error {
	return fmt.Errorf("event subscription fell behind: wants %d, the oldest that is kept is %d: %w",
		s.want, oldest, errdefs.ErrOutOfRange)
}

func (s *Subscription) damaged(err error) error {
	return fmt.Errorf("event %d: segment %q at byte %d: %w: %w",
		s.want, s.at.file.Name(), s.offset-int64(len(s.ahead)), err, errdefs.ErrDataLoss)
}
