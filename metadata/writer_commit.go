package metadata

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
)

// Commit turns the ingest into a blob of the namespace with the given labels
// and closes the writer. Another size than size (0: any) or digest than
// expected (empty: any) is FailedPrecondition, and keeps the ingest. If the
// namespace has the blob: AlreadyExists, and the ingest is gone.
func (w *Writer) Commit(ctx context.Context, size int64, expected digest.Digest, given map[string]string) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := labels.Validate(given); err != nil {
		return err
	}
	d := expected
	if d == "" {
		d = w.Digest()
	} else if err := d.Validate(); err != nil {
		return fmt.Errorf("commit ingest %q: expected digest %q: %w: %w", short(w.ref), short(string(d)), err, errdefs.ErrFailedPrecondition)
	}
	// From here on until the row is there nobody may remove these bytes.
	db := w.blobs.db
	unlock, err := db.lanes.lock(ctx, d.String())
	if err != nil {
		return err
	}
	defer unlock()
	if err := w.blobs.exists(ctx, d); err != nil {
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			err = errors.Join(err, w.drop(ctx))
		}
		return err
	}
	w.tried = true
	info, err := w.install(ctx, size, d, expected)
	if err != nil {
		return err
	}
	if err := w.blobs.name(ctx, info, w.ref, w.hold.backend, given); err != nil {
		return err
	}
	w.tried = false
	return w.Close()
}

// install has the bytes on disk under their digest, which is d, said by the
// caller or by the ingest.
func (w *Writer) install(ctx context.Context, size int64, d, said digest.Digest) (content.Info, error) {
	db := w.blobs.db
	if w.borrowed != nil {
		if d != w.borrowed.Digest || size > 0 && size != w.borrowed.Size {
			return content.Info{}, fmt.Errorf("commit ingest %q: it is %s of %d bytes, where %s of %d were expected: %w",
				short(w.ref), w.borrowed.Digest, w.borrowed.Size, d, size, errdefs.ErrFailedPrecondition)
		}
		return db.content.Stat(ctx, d)
	}
	if w.installed == d {
		return db.content.Stat(ctx, d) // an earlier try failed at the row
	}
	info, err := w.ingest.Commit(ctx, size, said)
	err = w.noRoom(err)
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		// Another namespace's, or from a commit that never got to its row.
		info, err = db.content.Stat(ctx, d)
	}
	if err == nil && info.Digest != d {
		db.unnamed.add(info.Digest) // its lane is not ours
		return info, fmt.Errorf("commit ingest %q: its bytes have changed, they are %s and were %s: write them again: %w",
			short(w.ref), info.Digest, d, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		w.installed = d
	}
	return info, err
}
