package remotes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// progress is how many bytes have to come over a connection for the next failure to
// count as the first.
const progress = 1 << 20

// Blob opens a blob, or manifest, to be read from an offset to its end. What is read
// has the size of the descriptor exactly, or reading ends in an error; the digest is
// the reader's to check, who has to hash it anyway. A connection that breaks is made
// anew where it broke, at the same host some times and then at the next.
//
// Each open blob holds one of the host's Config.MaxBlobs until it is closed.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	op := "fetch blob " + desc.Digest.String() + " of"
	if err := checkDescriptor(desc, 0); err != nil {
		return nil, fmt.Errorf("%s %s: %w", op, r.ref, err)
	}
	if offset < 0 || offset > desc.Size {
		return nil, fmt.Errorf("%s %s: offset %d is not within %d bytes: %w", op, r.ref, offset, desc.Size, errdefs.ErrOutOfRange)
	}
	list, err := r.able(op, Pull)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &blob{r: r, ctx: ctx, cancel: cancel, op: op, desc: desc, at: offset, left: list}
	if offset == desc.Size {
		b.done = true
		return b, nil
	}
	if err := b.open(); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// blob is a blob that is being read.
type blob struct {
	r      *Repository
	ctx    context.Context
	cancel context.CancelFunc
	op     string
	desc   ocispec.Descriptor

	at       int64 // next byte to be returned
	body     io.ReadCloser
	start    int64       // at, when body was opened
	left     []*endpoint // the first is the one that is asked
	held     *endpoint   // whose slot is taken
	failures int         // of the first of left, without progress
	problems []error
	done     bool
	err      error // sticky
}

// Read is of io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if b.done {
			b.err = io.EOF
			return 0, io.EOF
		}
		n, err := b.read(p)
		if n > 0 {
			return n, nil
		}
		if err != nil {
			if b.err = b.recover(err); b.err != nil {
				return 0, b.err
			}
		}
	}
}

// read reads from the body, and looks at its end whether it is the blob's.
func (b *blob) read(p []byte) (int, error) {
	if left := b.desc.Size - b.at; int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.body.Read(p)
	b.at += int64(n)
	if b.at == b.desc.Size {
		b.finish(err)
		return n, nil
	}
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

// finish makes sure that nothing comes after the last byte.
func (b *blob) finish(err error) {
	if err == nil {
		var more [1]byte
		if n, _ := io.ReadFull(b.body, more[:]); n > 0 {
			b.err = b.left[0].problem(b.ctx, b.op, fmt.Errorf("it sends more than the %d bytes that there are to be: %w", b.desc.Size, errdefs.ErrDataLoss))
		}
	}
	b.done = true
	b.release()
}

// recover goes on after a failure, or tells that there is no way to.
func (b *blob) recover(err error) error {
	e := b.left[0]
	if b.at-b.start >= progress {
		b.failures = 0
	}
	b.release()
	if b.ctx.Err() != nil {
		return e.problem(b.ctx, b.op, err)
	}
	b.failures++
	if b.failures >= b.r.client.config.Attempts {
		b.next(err)
	} else if err := b.r.pause(b.ctx, b.failures-1); err != nil {
		return e.problem(b.ctx, b.op, err)
	}
	return b.open()
}

// next gives a host up.
func (b *blob) next(err error) {
	b.problems = append(b.problems, b.left[0].problem(b.ctx, b.op, err))
	b.left, b.failures = b.left[1:], 0
}

// open asks for what is missing, at the first host that has it.
func (b *blob) open() error {
	for len(b.left) > 0 {
		e := b.left[0]
		err := b.ask(e)
		if err == nil {
			return nil
		}
		b.release()
		if b.ctx.Err() != nil {
			return e.problem(b.ctx, b.op, err)
		}
		if b.failures++; errors.As(err, new(*cutError)) && b.failures < b.r.client.config.Attempts {
			if err := b.r.pause(b.ctx, b.failures-1); err != nil {
				return e.problem(b.ctx, b.op, err)
			}
			continue
		}
		b.next(err)
	}
	return attempts(b.problems)
}

// ask opens the body at one host, from where reading is to go on.
func (b *blob) ask(e *endpoint) error {
	if err := e.pool.blobs.take(b.ctx); err != nil {
		return err
	}
	b.held = e
	kind := "blobs"
	var accept string
	if IsManifest(b.desc.MediaType) {
		kind, accept = "manifests", b.desc.MediaType
	}
	// The deadline is for the answer to begin, whatever has to happen before.
	ctx, cancel := context.WithCancelCause(e.pulling(b.ctx))
	timer := time.AfterFunc(b.r.client.config.TotalTimeout, func() { cancel(errSlow) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(kind, b.desc.Digest.String()), nil)
	if err != nil {
		timer.Stop()
		cancel(nil)
		return fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if b.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.desc.Size-1))
	}
	resp, err := e.Do(req)
	if !timer.Stop() && err != nil && context.Cause(ctx) == errSlow {
		err = errSlowAnswer
	}
	if err != nil {
		cancel(nil)
		return err
	}
	b.body = &cancelling{resp.Body, cancel}
	return b.begin(resp)
}

// errSlowAnswer is an answer that did not begin in time.
var errSlowAnswer = fmt.Errorf("no answer within the time allowed: %w", errdefs.ErrUnavailable)

// cancelling ends a request with its body.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (c *cancelling) Close() error {
	err := c.ReadCloser.Close()
	c.cancel(nil)
	return err
}

// begin looks at the answer, and gets to the byte that is wanted.
func (b *blob) begin(resp *http.Response) error {
	b.start = b.at
	switch resp.StatusCode {
	case http.StatusPartialContent:
		if b.at == 0 {
			return fmt.Errorf("it sends a part where all was asked for: %w", errdefs.ErrDataLoss)
		}
		first, last, size, err := contentRange(resp.Header.Get("Content-Range"))
		if err != nil || first != b.at || last >= b.desc.Size || size >= 0 && size != b.desc.Size {
			return fmt.Errorf("it sends the part %q of what was to be bytes %d-%d of %d: %w", clean(resp.Header.Get("Content-Range")), b.at, b.desc.Size-1, b.desc.Size, errdefs.ErrDataLoss)
		}
		if resp.ContentLength > b.desc.Size-b.at {
			return fmt.Errorf("it sends %d bytes of %d that are left: %w", resp.ContentLength, b.desc.Size-b.at, errdefs.ErrDataLoss)
		}
		return nil
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
			return fmt.Errorf("it has %d bytes of what was to have %d: %w", resp.ContentLength, b.desc.Size, errdefs.ErrDataLoss)
		}
		// It knows no ranges: what we have is read once more.
		if _, err := io.CopyN(io.Discard, b.body, b.at); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return &cutError{err}
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("it has less than %d bytes of what was to have %d: %w", b.at+1, b.desc.Size, errdefs.ErrDataLoss)
	}
	return answerError(resp)
}

// contentRange reads the header of that name (RFC 9110, section 14.4). The size is
// -1 if it isn't told.
func contentRange(text string) (first, last, size int64, err error) {
	bad := fmt.Errorf("content range %q: %w", clean(text), errdefs.ErrDataLoss)
	text, ok := strings.CutPrefix(text, "bytes ")
	span, all, ok2 := strings.Cut(text, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, bad
	}
	number := func(s string) int64 {
		n, e := strconv.ParseUint(s, 10, 63)
		if e != nil {
			err = bad
		}
		return int64(n)
	}
	first, last, size = number(from), number(to), -1
	if all != "*" {
		size = number(all)
	}
	if err == nil && (last < first || size >= 0 && last >= size) {
		err = bad
	}
	return first, last, size, err
}

// release closes the body and gives its slot back.
func (b *blob) release() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	if b.held != nil {
		b.held.pool.blobs.free()
		b.held = nil
	}
}

// Close ends the reading.
func (b *blob) Close() error {
	b.release()
	b.cancel()
	if b.err == nil {
		b.err = errClosed
	}
	return nil
}

var errClosed = errors.New("the blob is closed")
