package content

import (
	"context"
	_ "crypto/sha256" // the algorithms that digests are checked for
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/sys"
)

const (
	blobsDir  = "blobs"
	ingestDir = "ingest"

	batch = 256 // directory entries read at a time
)

// Disk is a Store in a directory. One process at a time may have it open.
type Disk struct {
	root string   // absolute
	dir  *os.Root // the same, for every path with a name in it that came from outside
	sha  *os.Root // blobs/sha256, where nearly all is
	boot string   // this boot's id
	now  func() time.Time

	recordEvery, recordMin int64 // bytes, see hashes.go

	// mu guards what follows. No I/O happens under it.
	mu sync.Mutex
	// held are the refs that a writer or Abort has.
	held map[string]struct{}
	// committing are the digests that a commit is at, one at a time; the channel
	// closes when it has ended.
	committing map[digest.Digest]chan struct{}
	// unflushed are the digests whose names may be on disk without being
	// flushed. They are not shown: nobody may rely on them yet.
	unflushed map[digest.Digest]struct{}
}

var _ Store = (*Disk)(nil)

// Open opens the store in the directory root, which it makes if need be, and
// removes what writers of a dead process have left.
func Open(root string) (*Disk, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	boot, err := sys.BootID()
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	s := &Disk{
		root: root, boot: boot, now: time.Now, held: map[string]struct{}{},
		committing: map[digest.Digest]chan struct{}{}, unflushed: map[digest.Digest]struct{}{},
		recordEvery: defaultRecordEvery, recordMin: defaultRecordMin,
	}
	for _, dir := range []string{ingestDir, filepath.Join(blobsDir, digest.Canonical.String())} {
		if err := durable.MkdirAll("content.open", filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open content store: %w", err)
		}
	}
	if s.dir, err = os.OpenRoot(root); err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	if s.sha, err = s.dir.OpenRoot(filepath.Join(blobsDir, digest.Canonical.String())); err != nil {
		return nil, errors.Join(fmt.Errorf("open content store: %w", err), s.dir.Close())
	}
	if err := s.tidy(); err != nil {
		return nil, errors.Join(fmt.Errorf("open content store: %w", err), s.Close())
	}
	return s, nil
}

// Close lets go of the directory. Readers and ingests must be closed before.
func (s *Disk) Close() error { return errors.Join(s.sha.Close(), s.dir.Close()) }

// at gives where a blob is: the nearest directory that is open, and the path from
// there. InvalidArgument: d is no digest, or of an unknown algorithm.
func (s *Disk) at(d digest.Digest) (*os.Root, string, error) {
	path, err := blobPath(d)
	if err == nil && d.Algorithm() == digest.Canonical {
		return s.sha, d.Encoded(), nil
	}
	return s.dir, path, err
}

// Stat implements Store.
func (s *Disk) Stat(_ context.Context, d digest.Digest) (Info, error) {
	dir, path, err := s.at(d)
	if err != nil {
		return Info{}, err
	}
	fi, err := dir.Lstat(path)
	if err == nil && !fi.Mode().IsRegular() || s.hidden(d) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, blobError(d, err)
	}
	return info(d, fi), nil
}

// Open implements Store.
func (s *Disk) Open(_ context.Context, d digest.Digest) (Reader, error) {
	dir, path, err := s.at(d)
	if err != nil {
		return nil, err
	}
	f, err := dir.Open(path)
	if err != nil {
		return nil, blobError(d, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() || s.hidden(d) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, errors.Join(blobError(d, err), f.Close())
	}
	return &reader{f, fi.Size()}, nil
}

// reader is an open blob.
type reader struct {
	f    *os.File
	size int64
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }
func (r *reader) Size() int64                             { return r.size }
func (r *reader) Close() error                            { return r.f.Close() }

// WriteTo writes the whole blob, from the kernel's cache to a socket or a file
// without a copy where the system can.
func (r *reader) WriteTo(w io.Writer) (int64, error) {
	if _, err := r.f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, r.f)
}

// Delete implements Store. The removal is not flushed: a power cut may bring
// back the blob, which no row names then.
func (s *Disk) Delete(_ context.Context, d digest.Digest) error {
	dir, path, err := s.at(d)
	if err != nil {
		return err
	}
	if s.hidden(d) {
		return blobError(d, fs.ErrNotExist)
	}
	if err := dir.Remove(path); err != nil {
		return blobError(d, err)
	}
	return nil
}

// All implements Store. Names that are no digests are passed over.
func (s *Disk) All(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for algorithm, err := range s.entries(ctx, blobsDir) {
			if err != nil {
				yield(Info{}, err)
				return
			}
			if !algorithm.IsDir() || !digest.Algorithm(algorithm.Name()).Available() {
				continue
			}
			if !s.allOf(ctx, digest.Algorithm(algorithm.Name()), yield) {
				return
			}
		}
	}
}

// allOf yields the blobs of one algorithm and tells whether to go on.
func (s *Disk) allOf(ctx context.Context, algorithm digest.Algorithm, yield func(Info, error) bool) bool {
	for entry, err := range s.entries(ctx, filepath.Join(blobsDir, algorithm.String())) {
		if err != nil {
			return yield(Info{}, err)
		}
		d := digest.NewDigestFromEncoded(algorithm, entry.Name())
		if d.Validate() != nil || !entry.Type().IsRegular() {
			continue
		}
		fi, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && s.hidden(d) {
			continue // deleted meanwhile, or not committed yet
		}
		if err != nil {
			err = blobError(d, err)
		}
		if !yield(info(d, fi), err) {
			return false
		}
	}
	return true
}

// entries yields what is in a directory of the store, a batch at a time.
func (s *Disk) entries(ctx context.Context, dir string) iter.Seq2[fs.DirEntry, error] {
	return func(yield func(fs.DirEntry, error) bool) {
		f, err := s.dir.Open(dir)
		if err != nil {
			yield(nil, fmt.Errorf("list content: %w", err))
			return
		}
		defer f.Close()
		for {
			if err := context.Cause(ctx); err != nil {
				yield(nil, fmt.Errorf("list content: %w", err))
				return
			}
			list, err := f.ReadDir(batch)
			for _, entry := range list {
				if !strings.HasPrefix(entry.Name(), durable.TempPrefix) && !yield(entry, nil) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("list content: %w", err))
				return
			}
		}
	}
}

// hidden tells whether the name of d, which may be on disk, is not flushed yet.
// Ask after having seen the name, not before.
func (s *Disk) hidden(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, unflushed := s.unflushed[d]
	return unflushed
}

// blobPath gives the path of d within the store. InvalidArgument: d is no
// digest, or of an unknown algorithm.
func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(blobsDir, d.Algorithm().String(), d.Encoded()), nil
}

func info(d digest.Digest, fi fs.FileInfo) Info {
	if fi == nil {
		return Info{Digest: d}
	}
	return Info{Digest: d, Size: fi.Size(), CreatedAt: fi.ModTime()}
}

func blobError(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return fmt.Errorf("content %s: %w", d, err)
}
