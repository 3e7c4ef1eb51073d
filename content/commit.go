package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
)

// commitOp names the durable steps of a commit: content.commit.sync (the
// bytes), .mkdir (the algorithm's directory, once), .rename, .syncdir.
const commitOp = "content.commit"

// Commit implements Ingest. After an error it may be called again.
func (w *ingest) Commit(ctx context.Context, size int64, want digest.Digest) (Info, error) {
	if err := w.usable(); err != nil && (w.moved == "" || w.closed) {
		return Info{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return Info{}, fmt.Errorf("commit ingest %q: %w", w.ref, err)
	}
	if err := w.settle(); err != nil {
		return Info{}, fmt.Errorf("commit: %w", err)
	}
	d, err := w.verify(ctx, size, want)
	if err != nil {
		return Info{}, fmt.Errorf("commit ingest %q: %w", w.ref, err)
	}
	if err := w.store.enter(ctx, d); err != nil {
		return Info{}, fmt.Errorf("commit ingest %q as %s: %w", w.ref, d, err)
	}
	exists, err := w.install(d)
	w.store.leave(d)
	if err != nil {
		return Info{}, fmt.Errorf("commit ingest %q as %s: %w", w.ref, d, err)
	}
	if exists {
		err = fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
		return Info{}, errors.Join(err, w.store.discard(w.dir), w.Close())
	}
	// The blob stands. Should what is left of the ingest not go away now, it goes
	// at the next open.
	_ = w.Close()
	return Info{Digest: d, Size: w.offset, CreatedAt: w.updatedAt}, nil
}

// verify checks the bytes against what they should be and gives their digest.
func (w *ingest) verify(ctx context.Context, size int64, want digest.Digest) (digest.Digest, error) {
	if size > 0 && size != w.offset {
		return "", fmt.Errorf("%d bytes where %d were announced: %w", w.offset, size, errdefs.ErrFailedPrecondition)
	}
	if want == "" && w.resumed {
		// Nobody else vouches for the digest: it is that of what is on disk.
		if err := w.rehash(ctx); err != nil {
			return "", err
		}
	}
	got := w.Digest()
	if want == "" || want == got {
		return got, nil
	}
	if err := want.Validate(); err != nil {
		return "", fmt.Errorf("expected digest %q: %w: %w", want, err, errdefs.ErrFailedPrecondition)
	}
	if want.Algorithm() != w.algorithm {
		h := want.Algorithm().Hash()
		if err := w.hashPart(ctx, h, 0, w.offset); err != nil {
			return "", err
		}
		got = digest.NewDigest(want.Algorithm(), h)
	} else if w.resumed {
		// Before saying so: a record may be wrong, what is on disk can't.
		if err := w.rehash(ctx); err != nil {
			return "", err
		}
		got = w.Digest()
	}
	if want != got {
		return "", fmt.Errorf("digest is %s where %s was expected: %w", got, want, errdefs.ErrFailedPrecondition)
	}
	return got, nil
}

// install gives the bytes their name: flushed before they have it, and the
// directory flushed before anybody sees it. exists tells that they had it.
func (w *ingest) install(d digest.Digest) (exists bool, err error) {
	path, err := blobPath(d)
	if err != nil {
		return false, err
	}
	s := w.store
	dir := s.path(filepath.Dir(path))
	switch w.moved {
	case "":
		if exists, err = s.intact(path, w.offset); err != nil {
			return false, err
		}
		if !exists {
			err = w.name(d, path, dir)
		}
	case d:
	default:
		err = fmt.Errorf("it is named %s already: %w", w.moved, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return false, err
	}
	// Also when the name was there: whoever gave it may not have got to this.
	if err := durable.SyncDir(commitOp, dir); err != nil {
		return false, err
	}
	s.show(d)
	return exists, nil
}

// name flushes the bytes and moves them to path in dir. If the move is made and
// fails all the same, that is noted: the next try goes on from there.
func (w *ingest) name(d digest.Digest, path, dir string) error {
	if err := w.f.Chmod(0o444); err != nil {
		return err
	}
	if err := durable.SyncFile(commitOp, w.f); err != nil {
		// The kernel may have dropped what it could not write, and would not say
		// so again: nothing of the bytes can be trusted.
		w.restore(0)
		return fmt.Errorf("flush, the bytes must be written again: %w", err)
	}
	s := w.store
	if err := durable.MkdirAll(commitOp, dir, 0o700); err != nil {
		return err
	}
	s.hide(d)
	from := filepath.Join(w.dir, dataFile)
	err := durable.RenameVolatile(commitOp, s.path(from), s.path(path))
	if err == nil {
		w.moved = d
		return nil
	}
	if _, lerr := s.dir.Lstat(from); errors.Is(lerr, fs.ErrNotExist) {
		w.moved = d
	} else {
		s.show(d)
	}
	return err
}

// intact tells whether a blob of that size is at path. One of another size is
// damage that a commit of the right bytes repairs.
func (s *Disk) intact(path string, size int64) (bool, error) {
	fi, err := s.dir.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && fi.Mode().IsRegular() && fi.Size() == size, err
}

// enter waits until nobody else commits d.
func (s *Disk) enter(ctx context.Context, d digest.Digest) error {
	for {
		s.mu.Lock()
		busy, ok := s.committing[d]
		if !ok {
			s.committing[d] = make(chan struct{})
		}
		s.mu.Unlock()
		if !ok {
			return nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave lets the next one commit d.
func (s *Disk) leave(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.committing[d])
	delete(s.committing, d)
}

// hide marks the name of d as one that may be there without being flushed.
func (s *Disk) hide(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unflushed[d] = struct{}{}
}

// show ends what hide began.
func (s *Disk) show(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unflushed, d)
}
