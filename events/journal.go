package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/types"
)

const (
	// DefaultMaxBytes is the bound of a journal that sets none. An event takes
	// about 150 bytes, so this is some 200,000 of them.
	DefaultMaxBytes = 32 << 20

	// minMaxBytes is the smallest bound that makes sense.
	minMaxBytes = 4 << 10

	// segmentsKept is into how many parts the bound is cut: so much of it goes
	// at once.
	segmentsKept = 8
)

// Options say where a journal is and how much it keeps.
type Options struct {
	Dir      string           // made if it is missing
	MaxBytes int64            // of all segments together; 0 is DefaultMaxBytes
	Now      func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is silence
}

// Journal numbers events and keeps the latest of them. Its methods may be
// called by several goroutines at once.
type Journal struct {
	dir      string
	maxBytes int64
	now      func() time.Time
	log      *slog.Logger
	began    uint64 // number of the last event of earlier processes; 0: there is none

	// lane orders the appends. Whoever holds it is the only one that changes
	// files, and may do so without mu; what readers may see changes under mu.
	lane   sync.Mutex
	recent *recent // belongs to whoever holds lane

	// mu guards what follows. Nothing is read or written under it.
	mu       sync.Mutex
	segments []*segment    // rising, never empty until closed
	next     uint64        // number of the event to come
	wake     chan struct{} // closed at the next change; nil if nobody waits
	closed   bool
}

// Open opens the journal in a directory, or starts one there. Of a record that
// was being written when the last process ended, what is there is cut off. One
// process may have a journal open; the daemon's lock sees to that.
func Open(o Options) (*Journal, error) {
	j := &Journal{dir: o.Dir, maxBytes: o.MaxBytes, now: o.Now, log: o.Log, recent: newRecent()}
	if j.maxBytes == 0 {
		j.maxBytes = DefaultMaxBytes
	}
	if j.now == nil {
		j.now = time.Now
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	if j.maxBytes < minMaxBytes {
		return nil, fmt.Errorf("open event journal %q: bound of %d bytes is below %d: %w",
			o.Dir, o.MaxBytes, minMaxBytes, errdefs.ErrInvalidArgument)
	}
	if err := j.load(); err != nil {
		for _, s := range j.segments {
			err = errors.Join(err, s.file.Close())
		}
		return nil, fmt.Errorf("open event journal %q: %w", o.Dir, err)
	}
	if oldest, newest := j.Bounds(); newest >= oldest {
		j.began = newest
	}
	return j, nil
}

// load opens the segments there are, mends the last one and sees to it that
// there is one to append to.
func (j *Journal) load() error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	firsts, err := listSegments(j.dir)
	if err != nil {
		return err
	}
	for _, first := range firsts {
		s, err := openSegment(j.dir, first)
		if err != nil {
			return err
		}
		j.segments = append(j.segments, s)
	}
	j.next = uint64(max(1, j.now().UnixMicro()))
	appendable := false
	if n := len(j.segments); n > 0 {
		if appendable, err = j.mend(j.segments[n-1]); err != nil {
			return err
		}
	}
	if !appendable {
		s, err := createSegment(j.dir, j.next)
		if err != nil {
			return err
		}
		j.segments = append(j.segments, s)
	}
	return j.makeRoom(0)
}

// mend makes the last segment end behind its last good record and sets the
// number to come. After a cut the numbers leave out as many as may have been
// lost, so that none stands for two events, and a new segment is needed.
func (j *Journal) mend(last *segment) (appendable bool, err error) {
	next, end, wrong, err := last.scan(j.recent.load)
	if err != nil {
		return false, err
	}
	j.recent.settle()
	j.next = next
	if wrong == nil {
		return true, nil
	}
	cut := last.size - end
	j.log.Warn("event journal cut", "file", last.file.Name(), "at", end, "bytes", cut, "reason", wrong)
	j.next += 1 + uint64(cut)/headerLen
	if end <= int64(len(magic)) {
		j.segments = j.segments[:len(j.segments)-1]
		return false, last.remove()
	}
	last.size = end
	return false, last.file.Truncate(end)
}

// Began is the number of the last event that was there when the journal was opened,
// from earlier processes; 0 if there was none.
func (j *Journal) Began() uint64 { return j.began }

// Bounds tells the number of the oldest event that is kept and of the newest.
// In an empty journal the oldest is one above the newest.
func (j *Journal) Bounds() (oldest, newest uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return j.next, j.next - 1
	}
	return j.segments[0].first, j.next - 1
}

// append writes one record, whose body stands behind headerLen free bytes, and
// shows it to the subscribers. With once, an event that is there already is not
// written again.
func (j *Journal) append(record []byte, e *types.Envelope, once bool) error {
	j.lane.Lock()
	defer j.lane.Unlock()
	if j.closedNow() {
		return errJournalClosed
	}
	sum, known := j.recent.sum(e)
	if once && known && j.recent.has(sum) {
		return nil
	}
	if err := j.makeRoom(int64(len(record))); err != nil {
		// More is kept than should be: worth a line, not the event.
		j.log.Warn("old events not removed", "dir", j.dir, "error", err)
	}
	last, err := j.rotate(int64(len(record)))
	if err != nil {
		return err
	}
	seal(record, j.next)
	if err := j.write(last, record); err != nil {
		return err
	}
	if known {
		j.recent.add(sum)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	last.size += int64(len(record))
	j.next++
	j.wakeAll()
	return nil
}

// write puts a record behind the last one. If the file system is full, the
// oldest events go first.
func (j *Journal) write(last *segment, record []byte) error {
	_, err := last.file.WriteAt(record, last.size)
	if err == nil {
		return nil
	}
	if j.dropOldest() {
		if _, err = last.file.WriteAt(record, last.size); err == nil {
			return nil
		}
	}
	// Cut the part that was written, though the next record would cover it.
	err = errors.Join(err, last.file.Truncate(last.size))
	return fmt.Errorf("write event: %w: %w", err, errdefs.ErrUnavailable)
}

// rotate gives the segment that the next record of n bytes belongs in. The
// caller holds lane.
func (j *Journal) rotate(n int64) (*segment, error) {
	last := j.segments[len(j.segments)-1]
	if last.size+n <= j.maxBytes/segmentsKept || last.size == int64(len(magic)) {
		return last, nil
	}
	s, err := createSegment(j.dir, j.next)
	if err != nil && j.dropOldest() {
		s, err = createSegment(j.dir, j.next)
	}
	if err != nil {
		return nil, fmt.Errorf("start event segment: %w: %w", err, errdefs.ErrUnavailable)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments = append(j.segments, s)
	return s, nil
}

// makeRoom removes the oldest segments until n more bytes, and the start of a
// segment for them, fit. The caller holds lane, or nobody else knows j.
func (j *Journal) makeRoom(n int64) error {
	total := n + int64(len(magic))
	for _, s := range j.segments {
		total += s.size
	}
	var errs []error
	for total > j.maxBytes && len(j.segments) > 1 {
		total -= j.segments[0].size
		errs = append(errs, j.forgetOldest().remove())
	}
	return errors.Join(errs...)
}

// dropOldest removes one segment if there is one to spare.
func (j *Journal) dropOldest() bool {
	if len(j.segments) < 2 {
		return false
	}
	return j.forgetOldest().remove() == nil
}

// forgetOldest takes the oldest segment away from the readers.
func (j *Journal) forgetOldest() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	oldest := j.segments[0]
	j.segments = j.segments[1:]
	return oldest
}

// wakeAll tells those who wait that something changed. The caller holds mu.
func (j *Journal) wakeAll() {
	if j.wake != nil {
		close(j.wake)
		j.wake = nil
	}
}

// changed gives a channel that is closed at the next change. The caller holds
// mu.
func (j *Journal) changed() <-chan struct{} {
	if j.wake == nil {
		j.wake = make(chan struct{})
	}
	return j.wake
}

var (
	errJournalClosed      = fmt.Errorf("event journal is closed: %w", errdefs.ErrUnavailable)
	errSubscriptionClosed = fmt.Errorf("event subscription is closed: %w", context.Canceled)
)

func (j *Journal) closedNow() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closed
}

// Close waits for the append that is under way and closes the files. What comes
// later, and each subscription, gets Unavailable.
func (j *Journal) Close() error {
	j.lane.Lock()
	defer j.lane.Unlock()
	j.mu.Lock()
	segments := j.segments
	j.segments, j.closed = nil, true
	j.wakeAll()
	j.mu.Unlock()
	var errs []error
	for _, s := range segments {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}
