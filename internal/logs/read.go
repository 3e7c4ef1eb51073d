package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
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
	// Ended is closed once nothing more will be written; then what is there is
	// read to its end. Nil means that already now nothing more is waited for.
	Ended <-chan struct{}
}

// Read gives a log to out in pieces that out must not keep. An error of out
// ends it and is returned.
func (s *Store) Read(ctx context.Context, namespace, id string, o ReadOptions, out func(data []byte) error) error {
	f, err := s.open(namespace, id)
	if err != nil {
		return err
	}
	defer f.Close()
	if o.Tail >= 0 {
		offset, err := tail(f, o.Tail)
		if err != nil {
			return fmt.Errorf("read log of container %q: %w", id, err)
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return fmt.Errorf("read log of container %q: %w", id, err)
		}
	}
	buf := make([]byte, chunk)
	pause := minPause
	for {
		over := ended(o.Ended) // asked before reading: what was written until now will be seen
		n, err := drain(ctx, f, buf, out)
		if err != nil {
			return err
		}
		if over {
			return nil
		}
		if n > 0 {
			pause = minPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-o.Ended:
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

// drain gives what is there now and tells how much it was.
func drain(ctx context.Context, f *os.File, buf []byte, out func([]byte) error) (int64, error) {
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := f.Read(buf)
		if n > 0 {
			total += int64(n)
			if err := out(buf[:n]); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("read log: %w", err)
		}
	}
}

// tail finds where the last lines begin. A last line without its newline
// counts as one.
func tail(f io.ReadSeeker, lines int64) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return end, err
	}
	buf := make([]byte, 64<<10)
	seen := int64(0)
	for pos := end; pos > 0; {
		n := min(int64(len(buf)), pos)
		pos -= n
		if _, err := f.Seek(pos, io.SeekStart); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(f, buf[:n]); err != nil {
			return 0, err
		}
		part := buf[:n]
		if pos+n == end { // the newline that ends the last line starts no other
			part = bytes.TrimSuffix(part, []byte("\n"))
		}
		for {
			i := bytes.LastIndexByte(part, '\n')
			if i < 0 {
				break
			}
			if seen++; seen == lines {
				return pos + int64(i) + 1, nil
			}
			part = part[:i]
		}
	}
	return 0, nil
}
