package content

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
)

// The state of an ingest's hash is recorded beside its bytes, so that whoever
// goes on with them need not read them again. A record stands for bytes that
// were on disk when it was made: what the kernel could not write would otherwise
// have its right hash for ever. So bytes are flushed first, while further ones
// are written, and the record follows. It has to go before bytes that it stands
// for do.

const (
	recordFile = "hash.json"
	// recordOp names the durable steps: content.record.sync, .write, .rename.
	recordOp = "content.record"

	defaultRecordEvery = 64 << 20 // bytes after which a writer makes a record
	defaultRecordMin   = 8 << 20  // fewer are sooner read again than flushed when a writer lets go
)

// record is a hash as it stood after the first Size bytes. The zero record is
// none.
type record struct {
	Size      int64            `json:"size"`
	Algorithm digest.Algorithm `json:"algorithm"`
	State     []byte           `json:"state"`
	Sum       string           `json:"sum"` // of the rest
}

func (r record) sum() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %x", r.Size, r.Algorithm, r.State))
	return hex.EncodeToString(sum[:])
}

// recordOf gives the record of a hash. One that can't be recorded has none.
func recordOf(h hash.Hash, algorithm digest.Algorithm, size int64) (record, bool) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return record{}, false
	}
	state, err := m.MarshalBinary()
	if err != nil {
		return record{}, false
	}
	r := record{Size: size, Algorithm: algorithm, State: state}
	r.Sum = r.sum()
	return r, true
}

// hash gives the hash that was recorded, if it is one of that algorithm.
func (r record) hash(algorithm digest.Algorithm) (hash.Hash, bool) {
	if r.Size == 0 || r.Algorithm != algorithm {
		return nil, false
	}
	h := algorithm.Hash()
	u, ok := h.(encoding.BinaryUnmarshaler)
	return h, ok && u.UnmarshalBinary(r.State) == nil
}

// readRecord reads the record of an ingest with that many bytes. Without a
// sound one it gives the zero record, and there is none on disk either.
func (s *Disk) readRecord(dir string, size int64) (record, error) {
	path := filepath.Join(dir, recordFile)
	data, err := s.readSmall(path, maxState)
	if errors.Is(err, errDamaged) && !s.there(path) {
		return record{}, nil
	}
	var r record
	if err == nil && json.Unmarshal(data, &r) == nil && r.Size > 0 && r.Size <= size && r.Sum == r.sum() {
		return r, nil
	}
	return record{}, s.dir.Remove(path)
}

func (s *Disk) there(path string) bool {
	_, err := s.dir.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// recording is one record on its way to disk, beside the writer.
type recording struct {
	record record
	done   chan struct{} // closed when what follows is set
	err    error
	lost   bool // the bytes could not be flushed: none of them can be trusted
}

// note begins to record the hash if enough was written since the last time. Its
// errors are those of settle.
func (w *ingest) note() error {
	if w.offset-w.noted < w.store.recordEvery {
		return nil
	}
	if w.recording != nil {
		select {
		case <-w.recording.done:
		default:
			return nil // the disk is slow: later
		}
		if err := w.settle(); err != nil {
			return err
		}
	}
	if r, ok := recordOf(w.hash, w.algorithm, w.offset); ok {
		w.noted = w.offset
		w.recording = &recording{record: r, done: make(chan struct{})}
		go w.keep(w.recording)
	}
	return nil
}

// keep flushes the bytes, then makes the record.
func (w *ingest) keep(r *recording) {
	defer close(r.done)
	if r.err = durable.SyncFile(recordOp, w.f); r.err != nil {
		r.lost = true
		return
	}
	data, err := json.Marshal(r.record)
	if err == nil {
		err = durable.WriteVolatile(recordOp, w.store.path(filepath.Join(w.dir, recordFile)), data, 0o600)
	}
	r.err = err
}

// settle waits for a record on its way. An error means that the bytes are lost,
// and the ingest stands at its start; to have no record is none.
func (w *ingest) settle() error {
	r := w.recording
	if r == nil {
		return nil
	}
	<-r.done
	w.recording = nil
	if r.err == nil {
		w.record = r.record
		return nil
	}
	// The rename may have been made before it failed.
	if err := w.unrecord(); err != nil && !r.lost {
		w.broken = err
		return err
	}
	if !r.lost {
		return nil
	}
	w.restore(0)
	return fmt.Errorf("ingest %q: flush, the bytes must be written again: %w", w.ref, r.err)
}

// unrecord removes the record.
func (w *ingest) unrecord() error {
	w.record, w.noted = record{}, w.offset
	err := w.store.dir.Remove(filepath.Join(w.dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// leave records the hash for whoever goes on, if that saves them much.
func (w *ingest) leave() error {
	err := w.settle()
	if err != nil || w.broken != nil || w.moved != "" || w.offset-w.record.Size < w.store.recordMin {
		return err
	}
	r, ok := recordOf(w.hash, w.algorithm, w.offset)
	if !ok {
		return nil
	}
	w.recording = &recording{record: r, done: make(chan struct{})}
	w.keep(w.recording)
	return w.settle()
}

// hashOf hashes the first size bytes of the file, but for those that the record
// stands for.
func (w *ingest) hashOf(ctx context.Context, algorithm digest.Algorithm, size int64) (hash.Hash, error) {
	if w.record.Size <= size {
		if h, ok := w.record.hash(algorithm); ok {
			return h, w.hashPart(ctx, h, w.record.Size, size)
		}
	}
	h := algorithm.Hash()
	return h, w.hashPart(ctx, h, 0, size)
}

// rehash hashes all of the file, whatever was recorded.
func (w *ingest) rehash(ctx context.Context) error {
	h := w.algorithm.Hash()
	if err := w.hashPart(ctx, h, 0, w.offset); err != nil {
		return err
	}
	w.hash, w.resumed = h, false
	return w.unrecord()
}

// hashPart has h read the file from off to end.
func (w *ingest) hashPart(ctx context.Context, h hash.Hash, off, end int64) error {
	if off == end {
		return nil
	}
	buf := make([]byte, min(end-off, hashChunk))
	for off < end {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := w.f.ReadAt(buf[:min(end-off, hashChunk)], off)
		h.Write(buf[:n])
		off += int64(n)
		w.read += int64(n)
		if errors.Is(err, io.EOF) && off < end {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && off < end {
			return fmt.Errorf("hash what is there: %w", err)
		}
	}
	return nil
}
