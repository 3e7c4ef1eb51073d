package remotes

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// errStalled is why a transfer was given up in which nothing, or next to nothing,
// moved.
var errStalled = errors.New("the transfer stalled")

// stallBytes is what has to come within the time for a stall: one who sends a byte
// now and then is no better than one who sends none.
const stallBytes = 1024

// stallReader reads the body of an answer and gives up when it stalls. Only time
// spent in waiting for the server counts, not the reader's own.
type stallReader struct {
	body   io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	limit  time.Duration

	waited time.Duration // since the last stallBytes began
	got    int
}

func (r *stallReader) Read(p []byte) (int, error) {
	timer := time.AfterFunc(r.limit-r.waited, func() { r.cancel(errStalled) })
	begin := time.Now()
	n, err := r.body.Read(p)
	timer.Stop()
	r.waited += time.Since(begin)
	r.got += n
	if r.got >= stallBytes {
		r.got, r.waited = 0, 0
	}
	if err != nil && err != io.EOF && context.Cause(r.ctx) == errStalled {
		err = errStalled
	}
	return n, err
}

func (r *stallReader) Close() error {
	err := r.body.Close()
	r.cancel(context.Canceled)
	return err
}

// stallWriter is the body of a request. It gives the request up when the server
// takes nothing of it for a time. The time that the body itself takes to be read
// doesn't count.
type stallWriter struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	limit  time.Duration

	mu    sync.Mutex // guards timer: a transport may close while it reads
	timer *time.Timer
	done  bool
}

func (w *stallWriter) Read(p []byte) (int, error) {
	w.rest()
	n, err := w.ReadCloser.Read(p)
	if err == nil {
		w.mu.Lock()
		if !w.done {
			w.timer = time.AfterFunc(w.limit, func() { w.cancel(errStalled) })
		}
		w.mu.Unlock()
	}
	return n, err
}

func (w *stallWriter) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

func (w *stallWriter) Close() error {
	w.mu.Lock()
	w.done = true
	w.mu.Unlock()
	w.rest()
	return w.ReadCloser.Close()
}
