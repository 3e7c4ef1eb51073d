package diff

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	chunkSize = 64 << 10 // bytes
	chunks    = 8        // buffers that go round
)

// chunk is a buffer with two readers. Who is last gives it back.
type chunk struct {
	data    []byte
	readers atomic.Int32
	space   [chunkSize]byte
}

// flow hands an uncompressed stream to a hash and to one reader at a time. It
// is the reader. Its goroutines end with the stream, or with the context.
type flow struct {
	free   chan *chunk
	hashed chan *chunk
	read   chan *chunk
	failed error // why the stream ended; set before read is closed
	size   int64 // of the stream; set before hashed is closed
	sum    digest.Digest
	done   sync.WaitGroup

	current *chunk // being read
	rest    []byte // of current
}

// start makes a flow of r, which may have at most limit bytes.
func start(ctx context.Context, r io.Reader, limit int64) *flow {
	f := &flow{
		free:   make(chan *chunk, chunks),
		hashed: make(chan *chunk, chunks),
		read:   make(chan *chunk, chunks),
	}
	for range chunks {
		f.free <- new(chunk)
	}
	f.done.Go(func() { f.pump(ctx, r, limit) })
	f.done.Go(f.hash)
	return f
}

// pump reads r into chunks.
func (f *flow) pump(ctx context.Context, r io.Reader, limit int64) {
	defer close(f.read)
	defer close(f.hashed)
	for f.failed == nil {
		var c *chunk
		select {
		case c = <-f.free:
		case <-ctx.Done():
			f.failed = context.Cause(ctx)
			return
		}
		n, err := readFull(r, c.space[:])
		if ctx.Err() != nil {
			f.failed = context.Cause(ctx) // whatever came meanwhile: it is not to be judged
			return
		}
		if f.size += int64(n); f.size > limit {
			f.failed = fmt.Errorf("uncompressed it has more than %d bytes: %w", limit, errdefs.ErrResourceExhausted)
			return
		}
		if n > 0 {
			c.data = c.space[:n]
			c.readers.Store(2)
			// Neither blocks: there is room for every chunk.
			f.hashed <- c
			f.read <- c
		}
		f.failed = err
	}
}

// readFull reads until p is full or r ends. Unlike io.ReadFull it tells an end that r
// calls unexpected from one that merely comes before p is full.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (f *flow) hash() {
	h := sha256.New()
	for c := range f.hashed {
		h.Write(c.data)
		f.release(c)
	}
	f.sum = digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil))
}

func (f *flow) release(c *chunk) {
	if c.readers.Add(-1) == 0 {
		f.free <- c
	}
}

// Read gives the stream to whoever extracts it.
func (f *flow) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.current != nil {
			f.release(f.current)
		}
		c, ok := <-f.read
		f.current = c
		if !ok {
			return 0, f.failed
		}
		f.rest = c.data
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// finish reads what is left after the tar, and returns digest and size of the
// whole stream.
func (f *flow) finish() (digest.Digest, int64, error) {
	for {
		f.rest = nil
		if _, err := f.Read(nil); err == io.EOF {
			break
		} else if err != nil {
			return "", 0, err
		}
	}
	f.done.Wait()
	return f.sum, f.size, nil
}
