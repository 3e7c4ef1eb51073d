package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
)

// chunk is how much is read and given at once, in bytes.
const chunk = 256 << 10

// A follower that has caught up looks again after minPause, and twice as late
// each time it finds nothing, up to maxPause.
const (
	minPause = 20 * time.Millisecond
	maxPause = 400 * time.Millisecond
)

// ReadOptions say which part of a log to read.
type ReadOptions struct {
	Tail int64 // lines before the end to start at; negative: at the start
	// From is the position of a Batch of an earlier Read, to go on behind it; Tail
	// is not looked at then. Empty: no earlier one.
	From string
	// Since and Until leave out what is older, and what is younger. Zero: nothing.
	Since, Until time.Time
	// Ended is closed once nothing more will be written; then what is there is
	// read to its end. Nil means that already now nothing more is waited for.
	Ended <-chan struct{}
}

// Batch is the next part of a log.
type Batch struct {
	Entries  []Entry
	Position string // of what follows
	// Lost says that something before it is not there any more, as no more than a
	// number of files is kept.
	Lost bool
}

// Read gives a log to out in batches that out must not keep. An error of out ends
// it and is returned. NotFound: there is no log.
func (s *Store) Read(ctx context.Context, namespace, id string, o ReadOptions, out func(Batch) error) error {
	r, err := s.reader(namespace, id, o)
	if err != nil {
		return err
	}
	defer func() { _ = r.at.Close() }() // only read
	r.out = out
	err = r.run(ctx)
	if err == errUntil {
		return nil
	}
	return err
}

// errUntil ends a read at ReadOptions.Until.
var errUntil = errors.New("until")

// reader is a Read.
type reader struct {
	store *Store
	dir   string
	id    string
	plain bool
	o     ReadOptions
	out   func(Batch) error

	at     segment // that is being read
	offset int64   // of what has not been given
	buf    []byte
	lost   bool
}

// reader opens a log where a Read begins.
func (s *Store) reader(namespace, id string, o ReadOptions) (*reader, error) {
	dir, err := place(namespace, id)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*reader, error) { return nil, fmt.Errorf("log of container %q: %w", id, err) }
	kept, err := s.options(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(errdefs.ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	if kept.Plain && !(o.Since.IsZero() && o.Until.IsZero()) {
		return fail(fmt.Errorf("it is plain and has no times: %w", errdefs.ErrFailedPrecondition))
	}
	r := &reader{store: s, dir: dir, id: id, plain: kept.Plain, o: o, buf: make([]byte, chunk)}
	all, err := s.segments(dir)
	if err == nil && len(all) == 0 {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return fail(err)
	}
	index, err := r.begin(all)
	if err != nil {
		closeAll(all)
		return fail(err)
	}
	r.at = all[index]
	closeAll(append(all[:index:index], all[index+1:]...))
	return r, nil
}

// begin decides where to begin.
func (r *reader) begin(all []segment) (index int, err error) {
	if r.o.From != "" {
		from, err := parsePosition(r.o.From)
		if err != nil {
			return 0, err
		}
		if index = find(all, from.identity); index < 0 {
			r.lost = true
			return 0, nil
		}
		info, err := all[index].Stat()
		if err != nil {
			return 0, err
		}
		if r.offset = from.offset; info.Size() < r.offset { // somebody has cut it
			r.offset, r.lost = 0, true
		}
		return index, nil
	}
	if r.o.Tail >= 0 {
		index, r.offset, err = tail(all, r.o.Tail, r.plain)
		return index, err
	}
	for index < len(all)-1 && !r.o.Since.IsZero() { // what was last written before
		info, err := all[index].Stat()
		if err != nil || !info.ModTime().Before(r.o.Since) {
			return index, err
		}
		index++
	}
	return index, nil
}

// run gives what is there, and what comes.
func (r *reader) run(ctx context.Context) error {
	if r.o.Ended != nil { // so that who goes on elsewhere knows where from
		if err := r.out(Batch{Position: position{r.at.identity, r.offset}.String(), Lost: r.lost}); err != nil {
			return err
		}
		r.lost = false
	}
	pause := minPause
	for {
		over := ended(r.o.Ended) // asked before reading: what was written until now will be seen
		n, err := r.drain(ctx)
		if err != nil {
			return err
		}
		if over {
			return r.rest()
		}
		if n > 0 {
			pause = minPause
		}
		if !r.o.Until.IsZero() && time.Now().After(r.o.Until) {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.o.Ended:
			timer.Stop()
		case <-timer.C:
			pause = min(2*pause, maxPause)
		}
	}
}

func ended(c <-chan struct{}) bool {
	if c == nil {
		return true
	}
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// drain gives what is there now, in this file and those that follow it, and tells
// how much it was.
func (r *reader) drain(ctx context.Context) (total int64, err error) {
	for {
		n, err := r.file(ctx)
		total += n
		if err != nil {
			return total, err
		}
		next, lost, err := r.next()
		if err != nil || next.File == nil {
			return total, err
		}
		// Nothing has been written to the file since it was put aside; but until then.
		n, err = r.file(ctx)
		if err == nil {
			err = r.rest()
		}
		if total += n; err != nil {
			return total, errors.Join(err, next.Close())
		}
		_ = r.at.Close() // only read
		r.at, r.offset, r.lost = next, 0, r.lost || lost
	}
}

// next opens the file that follows the one that is read; none, if that is still
// being written. lost tells that there were others in between.
func (r *reader) next() (next segment, lost bool, err error) {
	current, err := r.store.open(r.dir, File)
	if errors.Is(err, fs.ErrNotExist) {
		return segment{}, false, nil // it is being made, or the log removed
	}
	if err != nil {
		return segment{}, false, fmt.Errorf("log of container %q: %w", r.id, err)
	}
	same := current.identity == r.at.identity
	info, err := current.Stat()
	if err == nil && same && info.Size() < r.offset { // somebody has cut it
		r.offset, r.lost = 0, true
	}
	if err := errors.Join(err, current.Close()); err != nil || same {
		return segment{}, false, err
	}
	all, err := r.store.segments(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return segment{}, false, nil
	}
	if err != nil {
		return segment{}, false, fmt.Errorf("log of container %q: %w", r.id, err)
	}
	index := find(all, r.at.identity) + 1
	if index == len(all) {
		closeAll(all)
		return segment{}, false, nil
	}
	next = all[index]
	closeAll(append(all[:index:index], all[index+1:]...))
	return next, index == 0, nil
}

// file gives what is in the file that is read, up to the end of its last line.
func (r *reader) file(ctx context.Context) (total int64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.at.ReadAt(r.buf, r.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return total, fmt.Errorf("read log of container %q: %w", r.id, err)
		}
		data := r.buf[:n]
		if !r.plain {
			end := bytes.LastIndexByte(data, '\n') + 1
			if end == 0 && n == len(r.buf) { // no line of ours is as long
				end = n
			}
			data = data[:end]
		}
		if len(data) == 0 {
			return total, nil
		}
		if err := r.give(data); err != nil {
			return total, err
		}
		total += int64(len(data))
	}
}

// rest gives what has no end of line, of a file to which nothing is written any
// more.
func (r *reader) rest() error {
	n, err := r.at.ReadAt(r.buf, r.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read log of container %q: %w", r.id, err)
	}
	if n == 0 {
		return nil
	}
	return r.give(r.buf[:n])
}

// give gives lines to out.
func (r *reader) give(data []byte) error {
	r.offset += int64(len(data))
	batch := Batch{Position: position{r.at.identity, r.offset}.String(), Lost: r.lost}
	until := false
	if r.plain {
		batch.Entries = []Entry{{Data: data}}
	}
	for !r.plain && len(data) > 0 {
		end := bytes.IndexByte(data, '\n') + 1
		if end == 0 {
			end = len(data)
		}
		entry := parseEntry(data[:end])
		data = data[end:]
		if until = !r.o.Until.IsZero() && entry.Time.After(r.o.Until); until {
			break
		}
		if entry.Time.IsZero() || !entry.Time.Before(r.o.Since) {
			batch.Entries = append(batch.Entries, entry)
		}
	}
	r.lost = false
	if len(batch.Entries) > 0 || batch.Lost {
		if err := r.out(batch); err != nil {
			return err
		}
	}
	if until {
		return errUntil
	}
	return nil
}
