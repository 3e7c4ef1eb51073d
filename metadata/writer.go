package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/protobuf"
)

// Writer is one writer's hold on an ingest. It is not safe for concurrent use,
// and must be closed.
type Writer struct {
	blobs *Blobs
	ref   string
	hold  *hold
	want  content.Expect

	ingest content.Ingest // nil while the bytes are borrowed
	// borrowed is a blob that the store has and the namespace lacks. The writer
	// stands at its end; it can be committed without a byte sent.
	borrowed  *content.Info
	installed digest.Digest // not empty: the bytes are on disk under their digest
	tried     bool          // a commit was
	full      bool          // the disk had no room for it
	closed    bool
}

// Writer opens the ingest named ref, at the end of what an earlier writer left
// in it. While another writer has it: Unavailable. If the namespace has the
// blob want.Digest: AlreadyExists, and the ingest is gone. A want.Digest that
// is none is passed over. Without sharing (Options.Isolated), or if no
// namespace has the blob, the writer starts at nothing; else it stands at the
// end of the shared bytes.
func (b *Blobs) Writer(ctx context.Context, ref string, want content.Expect) (*Writer, error) {
	if err := b.checkRef(ref); err != nil {
		return nil, err
	}
	if want.Digest.Validate() != nil {
		want.Digest = ""
	}
	h, err := b.db.ingests.take(b.scope.Namespace, ref)
	if err != nil {
		return nil, err
	}
	w := &Writer{blobs: b, ref: ref, hold: h, want: want}
	if err := w.open(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *Writer) open(ctx context.Context) error {
	b := w.blobs
	if err := b.exists(ctx, w.want.Digest); err != nil {
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			err = errors.Join(err, ignoreNotFound(b.Abort(ctx, w.ref)))
		}
		return err
	}
	backend := ""
	err := b.db.View(func(tx *Tx) error {
		row, err := ingestTable.Get(tx, b.scope.Namespace, w.ref)
		backend = row.GetBackendRef()
		return ignoreNotFound(err)
	})
	if err != nil {
		return err
	}
	if backend != "" {
		return w.resume(ctx)
	}
	info, ok, err := b.borrow(ctx, w.want)
	if err != nil {
		return err
	}
	if ok {
		w.borrowed = &info
		return nil
	}
	return w.start(ctx)
}

func ignoreNotFound(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

// resume opens an ingest that has a row. The row is looked at again in a
// transaction that can write, so that a collection either sees the hold on it
// or was there before.
func (w *Writer) resume(ctx context.Context) error {
	b, backend := w.blobs, ""
	err := b.db.Update(ctx, func(tx *Tx) error {
		row, err := ingestTable.Get(tx, b.scope.Namespace, w.ref)
		if err != nil {
			return err
		}
		backend = row.BackendRef
		return b.renew(tx, w.ref, row)
	})
	if errors.Is(err, errdefs.ErrNotFound) && backend == "" {
		return w.start(ctx) // collected meanwhile
	}
	if err != nil {
		return err
	}
	b.db.ingests.assign(w.hold, b.scope.Namespace, w.ref, backend)
	w.ingest, err = b.db.content.Ingest(ctx, backend, w.want)
	return err
}

// start makes a new ingest: on disk first, then its row.
func (w *Writer) start(ctx context.Context) error {
	b := w.blobs
	backend := b.db.ingests.assign(w.hold, b.scope.Namespace, w.ref, "")
	ingest, err := b.db.content.Ingest(ctx, backend, w.want)
	if err != nil {
		err = errors.Join(err, b.db.discard(context.WithoutCancel(ctx), backend))
		b.db.ingests.unassign(w.hold)
		return err
	}
	err = b.db.Update(ctx, func(tx *Tx) error { return b.record(tx, w.ref, backend, w.want) })
	if err != nil {
		err = errors.Join(err, ingest.Close())
		if !b.db.hasIngest(b.scope.Namespace, w.ref, backend) {
			err = errors.Join(err, b.db.discard(context.WithoutCancel(ctx), backend))
		}
		b.db.ingests.unassign(w.hold)
		return err
	}
	w.ingest = ingest
	return nil
}

// hasIngest tells whether a row names an ingest of the content store; on doubt
// it does.
func (db *DB) hasIngest(ns, ref, backend string) bool {
	var row *rows.Ingest
	err := db.View(func(tx *Tx) (err error) {
		row, err = ingestTable.Get(tx, ns, ref)
		return err
	})
	if err != nil {
		return !errors.Is(err, errdefs.ErrNotFound)
	}
	return row.BackendRef == backend
}

// Expect notes what a later message says of the blob (contract 4.1, steps 2 and
// 3): zero values change nothing. If the namespace has the blob want.Digest:
// AlreadyExists, and the ingest is gone.
func (w *Writer) Expect(ctx context.Context, want content.Expect) error {
	if err := w.usable(); err != nil {
		return err
	}
	if want.Size > 0 {
		w.want.Size = want.Size
	}
	if want.Digest.Validate() != nil {
		return nil
	}
	w.want.Digest = want.Digest
	err := w.blobs.exists(ctx, want.Digest)
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return errors.Join(err, w.drop(ctx))
	}
	return err
}

// Status tells where the writer stands.
func (w *Writer) Status() (*contentapi.Status, error) {
	if err := w.usable(); err != nil {
		return nil, err
	}
	if w.borrowed != nil {
		at := protobuf.Timestamp(w.borrowed.CreatedAt)
		return &contentapi.Status{
			Ref: w.ref, Offset: w.borrowed.Size, Total: w.want.Size, Expected: w.borrowed.Digest.String(),
			StartedAt: at, UpdatedAt: at,
		}, nil
	}
	info, err := w.ingest.Status()
	if err != nil {
		return nil, err
	}
	if w.want.Size > 0 {
		info.Total = w.want.Size
	}
	return wireStatus(w.ref, info), nil
}

// Digest is that of the bytes so far.
func (w *Writer) Digest() digest.Digest {
	if w.borrowed != nil {
		return w.borrowed.Digest
	}
	return w.ingest.Digest()
}

// Write appends. Borrowed bytes are copied first.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if err := w.own(true); err != nil {
		return 0, w.noRoom(err)
	}
	n, err := w.ingest.Write(p)
	return n, w.noRoom(err)
}

// noRoom notes whether err is that of a full disk. Then the ingest is not kept
// for a later writer: it may be what fills the disk.
func (w *Writer) noRoom(err error) error {
	w.full = w.full || isFull(err)
	return err
}

// Open opens the bytes for reading while they come, see content.Ingest.
func (w *Writer) Open(ctx context.Context) (content.Reader, error) {
	if err := w.usable(); err != nil {
		return nil, err
	}
	if w.borrowed != nil {
		return w.blobs.db.content.Open(ctx, w.borrowed.Digest)
	}
	return w.ingest.Open()
}

// Truncate drops all bytes after size, which is not beyond the end.
func (w *Writer) Truncate(size int64) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := w.own(size > 0); err != nil {
		return err
	}
	return w.ingest.Truncate(size)
}

// own makes an ingest of what is borrowed, with its bytes or empty.
func (w *Writer) own(bytes bool) error {
	if w.borrowed == nil {
		return nil
	}
	db, ctx, blob := w.blobs.db, w.blobs.db.ctx, *w.borrowed
	if err := w.start(ctx); err != nil {
		return err
	}
	w.giveBack()
	if !bytes {
		return nil
	}
	r, err := db.content.Open(ctx, blob.Digest)
	if err == nil {
		_, err = io.Copy(w.ingest, io.NewSectionReader(r, 0, r.Size()))
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		return fmt.Errorf("ingest %q: copy content %s: %w", short(w.ref), blob.Digest, err)
	}
	return nil
}

// giveBack lets go of borrowed bytes.
func (w *Writer) giveBack() {
	if w.borrowed == nil {
		return
	}
	d := w.borrowed.Digest
	w.borrowed = nil
	if w.blobs.db.unnamed.unpin(d) {
		w.blobs.db.mayHaveGarbage()
	}
}

// usable answers why the writer can't be used, if it can't.
func (w *Writer) usable() error {
	switch {
	case w.closed:
		return fmt.Errorf("ingest %q: the writer is closed: %w", short(w.ref), errdefs.ErrFailedPrecondition)
	case w.blobs.db.ingests.wasAborted(w.hold):
		return fmt.Errorf("ingest %q was aborted: %w", short(w.ref), errdefs.ErrAborted)
	}
	return nil
}

// drop removes the ingest, row first, and closes the writer. What is not this
// writer's any more stays: its name may be another's by now.
func (w *Writer) drop(ctx context.Context) error {
	var err error
	if w.ingest != nil && w.usable() == nil {
		err = ignoreNotFound(w.blobs.Abort(ctx, w.ref))
	}
	return errors.Join(err, w.Close())
}

// End lets go and, unless the bytes are to be kept, drops the ingest, also when ctx
// has ended; that it is gone already is no error.
func (w *Writer) End(ctx context.Context, keep bool) error {
	if keep {
		return w.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return w.drop(ctx)
}

// Close lets go. The bytes are kept for a later writer, unless the ingest was
// aborted or committed, or the disk is full. Closing twice is no error.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.giveBack()
	db := w.blobs.db
	var err error
	if w.ingest != nil {
		if w.full && !db.ingests.wasAborted(w.hold) {
			err = ignoreNotFound(w.blobs.Abort(db.ctx, w.ref))
		}
		if db.ingests.wasAborted(w.hold) {
			// Nobody goes on with the bytes: no need to have them on disk.
			_ = w.ingest.Truncate(0)
		}
		err = errors.Join(err, w.ingest.Close())
		if db.ingests.wasAborted(w.hold) {
			err = errors.Join(err, db.discard(db.ctx, w.hold.backend))
		} else if w.tried {
			err = errors.Join(err, w.forget())
		}
	}
	db.ingests.release(w.hold)
	return err
}

// forget drops the row of an ingest that a failed commit left without bytes:
// they have got another name, or could not be flushed.
func (w *Writer) forget() error {
	b := w.blobs
	_, err := b.db.content.Status(b.db.ctx, w.hold.backend)
	if !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	return b.db.Update(b.db.ctx, func(tx *Tx) error { return b.dropIngest(tx, w.ref, w.hold.backend) })
}
