package content

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
)

const (
	overlapMin = 32 << 10 // writes from this size on are hashed beside the system call
	hashChunk  = 1 << 20  // bytes read at a time to hash what is there
	flushAhead = 8 << 20  // bytes after which the kernel is told to start writing
)

// ingest implements Ingest.
type ingest struct {
	store *Disk
	ref   string
	dir   string // within the store
	state state

	f         *os.File
	algorithm digest.Algorithm
	hash      hash.Hash // of the first offset bytes
	offset    int64
	flushed   int64 // bytes that the kernel was told to write
	updatedAt time.Time

	record    record     // of the hash, as it is on disk
	recording *recording // one on its way there, not nil until it was waited for
	noted     int64      // bytes when the last one was begun
	resumed   bool       // the hash rests on a record of an earlier writer's
	read      int64      // bytes read back to hash them

	moved  digest.Digest // not empty: the bytes have this name already, which may not be flushed
	broken error         // not nil: hash and offset do not match the file
	closed bool
}

// newWriter opens the bytes of an ingest and hashes what is there.
func (s *Disk) newWriter(ctx context.Context, dir, ref string, st state) (_ *ingest, err error) {
	f, err := s.dir.OpenFile(filepath.Join(dir, dataFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	w := &ingest{
		store: s, ref: ref, dir: dir, state: st, f: f,
		algorithm: digest.Canonical, updatedAt: fi.ModTime(),
	}
	if st.Expected != "" {
		w.algorithm = st.Expected.Algorithm()
	}
	if w.record, err = s.readRecord(dir, fi.Size()); err != nil {
		return nil, err
	}
	_, w.resumed = w.record.hash(w.algorithm)
	w.hash, err = w.hashOf(ctx, w.algorithm, fi.Size())
	w.offset, w.noted = fi.Size(), w.record.Size
	return w, err
}

// Status implements Ingest.
func (w *ingest) Status() (IngestInfo, error) {
	if err := w.usable(); err != nil {
		return IngestInfo{}, err
	}
	return IngestInfo{
		Ref: w.ref, Offset: w.offset, Total: w.state.Total, Expected: w.state.Expected,
		StartedAt: w.state.StartedAt, UpdatedAt: w.updatedAt,
	}, nil
}

// Digest implements Ingest.
func (w *ingest) Digest() digest.Digest { return digest.NewDigest(w.algorithm, w.hash) }

// Write implements Ingest. After an error the bytes that were written count,
// unless the kernel could not write back what came before.
func (w *ingest) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := w.append(p)
	w.offset += int64(n)
	w.updatedAt = w.store.now()
	if err != nil {
		// The hash may know more than the file.
		w.restore(w.offset)
		return n, fmt.Errorf("write ingest %q: %w", w.ref, err)
	}
	if w.offset-w.flushed >= flushAhead {
		durable.Writeback(w.f, w.flushed, w.offset-w.flushed)
		w.flushed = w.offset
	}
	if err := w.note(); err != nil {
		return 0, fmt.Errorf("write ingest %q: %w", w.ref, err)
	}
	return n, nil
}

// append writes p at the end and hashes it, both at once if it is long. The
// hash gets all of p in any case.
func (w *ingest) append(p []byte) (int, error) {
	if len(p) < overlapMin {
		w.hash.Write(p)
		return w.f.WriteAt(p, w.offset)
	}
	hashed := make(chan struct{})
	go func() {
		w.hash.Write(p)
		close(hashed)
	}()
	n, err := w.f.WriteAt(p, w.offset)
	<-hashed
	return n, err
}

// Open implements Ingest.
func (w *ingest) Open() (Reader, error) {
	if err := w.usable(); err != nil {
		return nil, err
	}
	f, err := w.store.dir.Open(filepath.Join(w.dir, dataFile))
	if err != nil {
		return nil, fmt.Errorf("ingest %q: %w", w.ref, err)
	}
	return &reader{f, w.offset}, nil
}

// Truncate implements Ingest.
func (w *ingest) Truncate(size int64) error {
	if err := w.usable(); err != nil && w.broken == nil {
		return err
	}
	if size < 0 || size > w.offset {
		return fmt.Errorf("truncate ingest %q to %d of %d bytes: %w", w.ref, size, w.offset, errdefs.ErrOutOfRange)
	}
	if size == w.offset && w.broken == nil {
		return nil
	}
	w.updatedAt = w.store.now()
	if w.restore(size); w.broken != nil {
		return fmt.Errorf("truncate ingest %q: %w", w.ref, w.broken)
	}
	return nil
}

// restore makes file, offset and hash agree on size bytes; if it can't, the
// ingest is broken until it can.
func (w *ingest) restore(size int64) {
	if w.broken = w.settle(); w.broken != nil {
		return
	}
	if size < w.record.Size {
		if w.broken = w.unrecord(); w.broken != nil {
			return
		}
	}
	w.broken = w.f.Truncate(size)
	if w.broken != nil {
		return
	}
	w.offset = size
	w.flushed, w.noted = min(w.flushed, size), min(w.noted, size)
	h, err := w.hashOf(context.Background(), w.algorithm, size)
	if err != nil {
		w.broken = err
		return
	}
	w.hash = h
}

// Close implements Ingest.
func (w *ingest) Close() error {
	if w.closed {
		return nil
	}
	err := w.leave()
	if w.moved != "" {
		// What is left has no bytes, and is none any more.
		_ = w.store.discard(w.dir)
	}
	w.closed = true
	err = errors.Join(err, w.f.Close())
	w.store.release(w.ref)
	return err
}

// usable answers why the ingest can't be used, if it can't.
func (w *ingest) usable() error {
	switch {
	case w.closed:
		return fmt.Errorf("ingest %q is closed: %w", w.ref, errdefs.ErrFailedPrecondition)
	case w.moved != "":
		return fmt.Errorf("ingest %q has its name already: %w", w.ref, errdefs.ErrFailedPrecondition)
	case w.broken != nil:
		return fmt.Errorf("ingest %q: an earlier write failed: %w", w.ref, w.broken)
	}
	return nil
}
