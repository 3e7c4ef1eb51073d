package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/protobuf"
)

const (
	// ingestLife is how long an ingest without a lease is kept after it was
	// last opened.
	ingestLife = 24 * time.Hour
	// ingestRenewal is how old that may get before it is written anew.
	ingestRenewal = time.Hour
)

// ingests is what the rows of ingests don't tell.
type ingests struct {
	// mu guards what follows.
	mu   sync.Mutex
	held map[string]*hold // by namespace and ref: one writer at a time
	// flying are names in the content store whose row is not there yet, or that
	// a writer still has; they are no orphans.
	flying map[string]struct{}
	// leaving are those whose row is gone and whose bytes could not be removed.
	leaving map[string]struct{}
	last    uint64 // highest number in a backend ref
}

// hold is a writer's hold on a ref.
type hold struct {
	key     string
	backend string // "" until it has an ingest of its own
	aborted bool
}

func newIngests() *ingests {
	return &ingests{held: map[string]*hold{}, flying: map[string]struct{}{}, leaving: map[string]struct{}{}}
}

// take makes the caller the only writer of a ref.
func (i *ingests) take(ns, ref string) (*hold, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	key := path(ns, ref)
	if i.held[key] != nil {
		return nil, fmt.Errorf("ingest %q is locked by another writer: %w", short(ref), errdefs.ErrUnavailable)
	}
	h := &hold{key: key}
	i.held[key] = h
	return h, nil
}

// assign notes which ingest of the content store the holder writes; "" for a
// new one, whose name is given.
func (i *ingests) assign(h *hold, ns, ref, backend string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if backend == "" {
		i.last++
		backend = fmt.Sprintf("%s/%d/%s", ns, i.last, ref)
	}
	h.backend = backend
	i.flying[backend] = struct{}{}
	return backend
}

// unassign takes back an assignment of which nothing came.
func (i *ingests) unassign(h *hold) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.flying, h.backend)
	h.backend = ""
}

// release ends a hold.
func (i *ingests) release(h *hold) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.held[h.key] == h {
		delete(i.held, h.key)
	}
	delete(i.flying, h.backend)
}

// abort takes a ref from its writer, if it has one with that backend ref, and
// tells so. The writer then removes the bytes when it lets go.
func (i *ingests) abort(ns, ref, backend string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.held[path(ns, ref)]
	if h == nil || h.backend != backend {
		return false
	}
	h.aborted = true
	delete(i.held, h.key)
	return true
}

func (i *ingests) wasAborted(h *hold) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return h.aborted
}

func (i *ingests) isHeld(ns, ref string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held[path(ns, ref)] != nil
}

func (i *ingests) isBusy(backend string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, flying := i.flying[backend]
	_, leaving := i.leaving[backend]
	return flying || leaving
}

// leave notes whether the bytes of an ingest without a row are still to go.
func (i *ingests) leave(backend string, still bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if still {
		i.leaving[backend] = struct{}{}
	} else {
		delete(i.leaving, backend)
	}
}

// left are those whose bytes are still to go.
func (i *ingests) left() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.leaving))
}

// seen has the number of a backend ref that exists not be used again.
func (i *ingests) seen(backend string) {
	parts := strings.SplitN(backend, "/", 3)
	if len(parts) != 3 {
		return
	}
	n, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = max(i.last, n)
}

func (b *Blobs) checkRef(ref string) error {
	if err := names.Namespace(b.scope.Namespace); err != nil {
		return err
	}
	return text("ref", ref)
}

// Status tells where an ingest stands: NotFound.
func (b *Blobs) Status(ctx context.Context, ref string) (*contentapi.Status, error) {
	if err := b.checkRef(ref); err != nil {
		return nil, err
	}
	var row *rows.Ingest
	err := b.db.View(func(tx *Tx) (err error) {
		row, err = ingestTable.Get(tx, b.scope.Namespace, ref)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b.status(ctx, row)
}

// status adds to a row what the content store knows. An ingest whose bytes were
// lost, as in a power cut, stands at its start.
func (b *Blobs) status(ctx context.Context, row *rows.Ingest) (*contentapi.Status, error) {
	info, err := b.db.content.Status(ctx, row.BackendRef)
	if errors.Is(err, errdefs.ErrNotFound) {
		status := row.GetStatus()
		status.UpdatedAt = status.GetStartedAt()
		return status, nil
	}
	if err != nil {
		return nil, err
	}
	return wireStatus(row.GetStatus().GetRef(), info), nil
}

func wireStatus(ref string, info content.IngestInfo) *contentapi.Status {
	return &contentapi.Status{
		Ref: ref, Offset: info.Offset, Total: info.Total, Expected: info.Expected.String(),
		StartedAt: protobuf.Timestamp(info.StartedAt), UpdatedAt: protobuf.Timestamp(info.UpdatedAt),
	}
}

// ListStatuses tells where the ingests stand that one of the filters matches.
func (b *Blobs) ListStatuses(ctx context.Context, filters ...string) ([]*contentapi.Status, error) {
	if err := names.Namespace(b.scope.Namespace); err != nil {
		return nil, err
	}
	var found []*rows.Ingest
	err := b.db.View(func(tx *Tx) error {
		for row, err := range ingestTable.All(tx, b.scope.Namespace, "") {
			if err != nil {
				return err
			}
			found = append(found, row)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list(func(yield func(*contentapi.Status, error) bool) {
		for _, row := range found {
			status, err := b.status(ctx, row)
			if !yield(status, err) {
				return
			}
		}
	}, ingestFields, filters)
}

// Abort drops an ingest: NotFound. A writer that has it finds it gone at its
// next step.
func (b *Blobs) Abort(ctx context.Context, ref string) error {
	if err := b.checkRef(ref); err != nil {
		return err
	}
	var backend string
	err := b.db.Update(ctx, func(tx *Tx) error {
		row, err := ingestTable.Get(tx, b.scope.Namespace, ref)
		if err != nil {
			return err
		}
		backend = row.BackendRef
		if err := tx.leave(b.scope, resourceIngests, ref); err != nil {
			return err
		}
		return ingestTable.Delete(tx, b.scope.Namespace, ref)
	})
	if backend == "" || err != nil && b.db.hasIngest(b.scope.Namespace, ref, backend) {
		return err
	}
	// Also after an error, which may have come too late to undo anything.
	if b.db.ingests.abort(b.scope.Namespace, ref, backend) {
		return err
	}
	return errors.Join(err, b.db.discard(ctx, backend))
}

// discard drops the bytes of an ingest that has no row. If it can't, the next
// collection tries again.
func (db *DB) discard(ctx context.Context, backend string) error {
	err := db.content.Abort(ctx, backend)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = nil
	}
	db.ingests.leave(backend, err != nil)
	return err
}

// retryDiscards drops what could not be dropped before.
func (db *DB) retryDiscards(ctx context.Context) {
	for _, backend := range db.ingests.left() {
		if err := db.discard(ctx, backend); err != nil {
			db.log.Warn("ingest not removed, trying again later", slog.String("ref", backend), slog.Any("error", err))
		}
	}
}

// renew has the row of an ingest that was opened join the lease, or live on
// without one. It writes only if that changes something.
func (b *Blobs) renew(tx *Tx, ref string, row *rows.Ingest) error {
	if b.scope.Lease != "" {
		if err := tx.join(b.scope, resourceIngests, ref); err != nil {
			return err
		}
		if row.ExpiresAt == nil {
			return nil
		}
		row.ExpiresAt = nil
		return ingestTable.Update(tx, b.scope.Namespace, ref, row)
	}
	if row.ExpiresAt == nil || row.ExpiresAt.AsTime().After(tx.now.Add(ingestLife-ingestRenewal)) {
		return nil
	}
	row.ExpiresAt = timestamppb.New(tx.now.Add(ingestLife))
	tx.endsAt(row.ExpiresAt.AsTime())
	return ingestTable.Update(tx, b.scope.Namespace, ref, row)
}

// record adds the row of a new ingest.
func (b *Blobs) record(tx *Tx, ref, backend string, want content.Expect) error {
	row := &rows.Ingest{
		Status: &contentapi.Status{
			Ref: ref, Total: want.Size, Expected: want.Digest.String(), StartedAt: timestamppb.New(tx.now),
		},
		BackendRef: backend,
	}
	if err := tx.needLease(b.scope); err != nil {
		return err
	}
	if b.scope.Lease == "" {
		row.ExpiresAt = timestamppb.New(tx.now.Add(ingestLife))
		tx.endsAt(row.ExpiresAt.AsTime())
	}
	if err := ingestTable.Create(tx, b.scope.Namespace, ref, row); err != nil {
		return err
	}
	return tx.join(b.scope, resourceIngests, ref)
}
