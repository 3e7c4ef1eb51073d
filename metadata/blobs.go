package metadata

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Blobs is the content of a namespace. Labels and times are the namespace's
// own, the bytes are shared by all. A blob that the namespace lacks is
// NotFound, even if another has it.
type Blobs struct {
	db    *DB
	scope Scope
}

// Blobs is the store of content.
func (db *DB) Blobs(s Scope) *Blobs { return &Blobs{db, s} }

func (b *Blobs) check(d digest.Digest) error {
	if err := names.Namespace(b.scope.Namespace); err != nil {
		return err
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", short(string(d)), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Info describes a blob: InvalidArgument, NotFound.
func (b *Blobs) Info(_ context.Context, d digest.Digest) (*contentapi.Info, error) {
	if err := b.check(d); err != nil {
		return nil, err
	}
	var row *contentapi.Info
	err := b.db.View(func(tx *Tx) (err error) {
		row, err = blobTable.Get(tx, b.scope.Namespace, d.String())
		return err
	})
	return row, err
}

// Open opens a blob for reading: InvalidArgument, NotFound.
func (b *Blobs) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	if err := b.check(d); err != nil {
		return nil, err
	}
	err := b.db.View(func(tx *Tx) error {
		if !blobTable.Has(tx, b.scope.Namespace, d.String()) {
			return blobTable.notFound(d.String())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.db.content.Open(ctx, d)
}

// List gives the blobs that one of the filters matches, in byte order of their
// digests.
func (b *Blobs) List(_ context.Context, filters ...string) (out []*contentapi.Info, err error) {
	if err := names.Namespace(b.scope.Namespace); err != nil {
		return nil, err
	}
	err = b.db.View(func(tx *Tx) (err error) {
		out, err = list(blobTable.All(tx, b.scope.Namespace, ""), blobFields, filters)
		return err
	})
	return out, err
}

// Update replaces the labels of a blob, or those that the mask names:
// InvalidArgument, NotFound. It gives what is stored.
func (b *Blobs) Update(ctx context.Context, info *contentapi.Info, mask ...string) (*contentapi.Info, error) {
	if err := b.check(digest.Digest(info.GetDigest())); err != nil {
		return nil, err
	}
	var row *contentapi.Info
	err := b.db.Update(ctx, func(tx *Tx) (err error) {
		row, err = blobTable.Get(tx, b.scope.Namespace, info.Digest)
		if err != nil {
			return err
		}
		before := cloneLabels(row.Labels)
		if err := updateLabels("blob", &row.Labels, info.Labels, mask); err != nil {
			return err
		}
		row.UpdatedAt = timestamppb.New(tx.now)
		tx.garbage = tx.garbage || losesReference(before, row.Labels)
		return blobTable.Update(tx, b.scope.Namespace, info.Digest, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Delete takes a blob from the namespace: InvalidArgument, NotFound. Its bytes
// go at the next collection, if no other namespace has it.
func (b *Blobs) Delete(ctx context.Context, d digest.Digest) error {
	if err := b.check(d); err != nil {
		return err
	}
	err := b.db.Update(ctx, func(tx *Tx) error {
		if err := blobTable.Delete(tx, b.scope.Namespace, d.String()); err != nil {
			return err
		}
		tx.garbage = true
		tx.publish(b.scope.Namespace, "/content/delete", &apievents.ContentDelete{Digest: d.String()})
		return tx.leave(b.scope, resourceContent, d.String())
	})
	if !errors.Is(err, errdefs.ErrNotFound) {
		// Also after an error, which may have come too late to undo anything.
		// Whether the bytes have a name is looked up when they are about to go.
		b.db.unnamed.add(d)
	}
	return err
}

// exists answers AlreadyExists if the namespace has the blob, and has it join
// the lease. A lease that does not exist is NotFound.
func (b *Blobs) exists(ctx context.Context, d digest.Digest) error {
	has := false
	err := b.db.View(func(tx *Tx) error {
		has = d != "" && blobTable.Has(tx, b.scope.Namespace, d.String())
		return tx.needLease(b.scope)
	})
	if err != nil || !has {
		return err
	}
	if b.scope.Lease != "" {
		err = b.db.Update(ctx, func(tx *Tx) error {
			if has = blobTable.Has(tx, b.scope.Namespace, d.String()); !has {
				return nil
			}
			return tx.join(b.scope, resourceContent, d.String())
		})
	}
	if err != nil || !has {
		return err
	}
	return blobTable.exists(d.String())
}

// name gives bytes that are on disk a row, in place of the ingest they came
// from. The caller has the lane of the digest.
func (b *Blobs) name(ctx context.Context, info content.Info, ref, backend string, given map[string]string) error {
	ns, d := b.scope.Namespace, info.Digest.String()
	err := b.db.Update(ctx, func(tx *Tx) error {
		row := &contentapi.Info{
			Digest: d, Size: info.Size, Labels: kept(given),
			CreatedAt: timestamppb.New(tx.now), UpdatedAt: timestamppb.New(tx.now),
		}
		if err := tx.needLease(b.scope); err != nil {
			return err
		}
		if err := blobTable.Create(tx, ns, d, row); err != nil {
			return err
		}
		if err := b.dropIngest(tx, ref, backend); err != nil {
			return err
		}
		tx.publish(ns, "/content/create", &apievents.ContentCreate{Digest: d, Size: info.Size})
		return tx.join(b.scope, resourceContent, d)
	})
	if err != nil {
		// The bytes may be left without a name; nobody else would know.
		b.db.unnamed.add(info.Digest)
		return fmt.Errorf("commit content %s: %w", d, err)
	}
	return nil
}

// dropIngest removes the row of an ingest, if it is still that one, and lets
// the lease go of it.
func (b *Blobs) dropIngest(tx *Tx, ref, backend string) error {
	row, err := ingestTable.Get(tx, b.scope.Namespace, ref)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.BackendRef != backend {
		return nil
	}
	if err := tx.leave(b.scope, resourceIngests, ref); err != nil {
		return err
	}
	return ingestTable.Delete(tx, b.scope.Namespace, ref)
}

// borrow tells whether the namespace may take a blob that the store has without
// sending its bytes, and if so keeps them until given back.
func (b *Blobs) borrow(ctx context.Context, want content.Expect) (info content.Info, ok bool, err error) {
	if want.Digest == "" {
		return info, false, nil
	}
	if b.db.options.Isolated {
		shareable := false
		err := b.db.View(func(tx *Tx) (err error) {
			shareable, err = tx.shareable(want.Digest.String())
			return err
		})
		if err != nil || !shareable {
			return info, false, err
		}
	}
	unlock, err := b.db.lanes.lock(ctx, want.Digest.String())
	if err != nil {
		return info, false, err
	}
	defer unlock()
	info, err = b.db.content.Stat(ctx, want.Digest)
	if errors.Is(err, errdefs.ErrNotFound) || err == nil && want.Size > 0 && want.Size != info.Size {
		return info, false, nil
	}
	if err != nil {
		return info, false, err
	}
	b.db.unnamed.pin(want.Digest)
	return info, true, nil
}

// shareable tells whether a namespace that shares its content has a blob.
func (tx *Tx) shareable(d string) (bool, error) {
	for _, name := range tx.namespaces() {
		ns, _, err := tx.namespace(name)
		if err != nil {
			return false, err
		}
		if ns.Labels[labels.NamespaceShareable] == "true" && blobTable.Has(tx, name, d) {
			return true, nil
		}
	}
	return false, nil
}
