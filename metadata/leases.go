package metadata

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Types of what a lease holds. That of a snapshot goes on with the name of the
// snapshotter.
const (
	resourceContent   = "content"
	resourceIngests   = "ingests"
	resourceImages    = "images"
	resourceSnapshots = "snapshots/"
	resourceMounts    = "mounts" // the daemon's own: clients neither add nor see it
)

// Leases is the leases of a namespace. What a lease holds is not collected; it
// need not exist.
type Leases struct {
	db    *DB
	scope Scope
}

// Leases is the store of leases. The lease of the scope plays no part in it.
func (db *DB) Leases(s Scope) *Leases { return &Leases{db, s} }

func (l *Leases) check(id string) error {
	if err := names.Namespace(l.scope.Namespace); err != nil {
		return err
	}
	return text("lease id", id)
}

// Create makes a lease: AlreadyExists. An empty id stands for a random one.
func (l *Leases) Create(ctx context.Context, id string, given map[string]string) (*leases.Lease, error) {
	if id == "" {
		id = randomLease(l.db.options.Now())
	}
	if err := l.check(id); err != nil {
		return nil, err
	}
	row := &leases.Lease{Id: id, Labels: kept(given)}
	err := l.db.Update(ctx, func(tx *Tx) error {
		row.CreatedAt = timestamppb.New(tx.now)
		tx.endsAt(expiry(row.Labels))
		return leaseTable.Create(tx, l.scope.Namespace, id, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

func randomLease(now time.Time) string {
	var random [3]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%d-%s", now.UnixNano(), base64.RawURLEncoding.EncodeToString(random[:]))
}

// Delete ends a lease: NotFound.
func (l *Leases) Delete(ctx context.Context, id string) error {
	if err := l.check(id); err != nil {
		return err
	}
	return l.db.Update(ctx, func(tx *Tx) error { return tx.deleteLease(l.scope.Namespace, id) })
}

func (tx *Tx) deleteLease(ns, id string) error {
	if err := leaseTable.Delete(tx, ns, id); err != nil {
		return err
	}
	tx.garbage = true
	return tx.deletePrefix(heldBucket, path(ns, id, ""))
}

// List gives the leases that one of the filters matches, in byte order of their
// ids.
func (l *Leases) List(_ context.Context, filters ...string) (out []*leases.Lease, err error) {
	if err := names.Namespace(l.scope.Namespace); err != nil {
		return nil, err
	}
	err = l.db.View(func(tx *Tx) (err error) {
		out, err = list(leaseTable.All(tx, l.scope.Namespace, ""), leaseFields, filters)
		return err
	})
	return out, err
}

// AddResource has a lease hold something: NotFound for an unknown lease,
// Unimplemented or InvalidArgument for a bad type or id.
func (l *Leases) AddResource(ctx context.Context, id string, r *leases.Resource) error {
	if err := l.check(id); err != nil {
		return err
	}
	if err := validResource(r); err != nil {
		return err
	}
	return l.db.Update(ctx, func(tx *Tx) error {
		return tx.join(Scope{l.scope.Namespace, id}, r.Type, r.Id)
	})
}

// DeleteResource has a lease let go of something, which it need not hold.
// Errors are those of AddResource.
func (l *Leases) DeleteResource(ctx context.Context, id string, r *leases.Resource) error {
	if err := l.check(id); err != nil {
		return err
	}
	if err := validResource(r); err != nil {
		return err
	}
	return l.db.Update(ctx, func(tx *Tx) error {
		if !leaseTable.Has(tx, l.scope.Namespace, id) {
			return leaseTable.notFound(id)
		}
		return tx.leave(Scope{l.scope.Namespace, id}, r.Type, r.Id)
	})
}

// ListResources gives what a lease holds: NotFound.
func (l *Leases) ListResources(_ context.Context, id string) (out []*leases.Resource, err error) {
	if err := l.check(id); err != nil {
		return nil, err
	}
	err = l.db.View(func(tx *Tx) error {
		if !leaseTable.Has(tx, l.scope.Namespace, id) {
			return leaseTable.notFound(id)
		}
		tx.eachHeld(l.scope.Namespace, id, func(kind, name string) {
			if kind != resourceMounts {
				out = append(out, &leases.Resource{Type: kind, Id: name})
			}
		})
		return nil
	})
	return out, err
}

func validResource(r *leases.Resource) error {
	kind, rest, parts := strings.Cut(r.GetType(), "/")
	switch kind {
	case resourceContent, resourceIngests, resourceImages:
		if parts {
			return fmt.Errorf("lease: resource type %q has too many parts: %w", short(r.Type), errdefs.ErrInvalidArgument)
		}
	case strings.TrimSuffix(resourceSnapshots, "/"):
		if rest == "" || strings.Contains(rest, "/") {
			return fmt.Errorf("lease: resource type %q must be snapshots/SNAPSHOTTER: %w", short(r.Type), errdefs.ErrInvalidArgument)
		}
		if err := text("lease: resource type", r.Type); err != nil {
			return err
		}
	default:
		return fmt.Errorf("lease: resource type %q: %w", short(r.GetType()), errdefs.ErrNotImplemented)
	}
	if kind == resourceContent {
		if err := digest.Digest(r.Id).Validate(); err != nil {
			return fmt.Errorf("lease: resource %q: %w: %w", short(r.Id), err, errdefs.ErrInvalidArgument)
		}
	}
	return text("lease: resource id", r.Id)
}

// join has the scope's lease hold something; without a lease nothing happens. A
// lease that does not exist is NotFound.
func (tx *Tx) join(s Scope, kind, name string) error {
	if s.Lease == "" {
		return nil
	}
	if err := tx.needLease(s); err != nil {
		return err
	}
	key := []byte(path(s.Namespace, s.Lease, kind, name))
	if tx.bolt.Bucket([]byte(heldBucket)).Get(key) != nil {
		return nil
	}
	if err := tx.put(heldBucket, key, []byte{}); err != nil {
		return fmt.Errorf("lease %q: %w", short(s.Lease), err)
	}
	tx.touch(node{kindLease, s.Namespace, s.Lease})
	if held, ok := heldNode(s.Namespace, kind, name); ok {
		tx.touch(held)
	}
	return nil
}

// needLease is NotFound if the scope has a lease that does not exist.
func (tx *Tx) needLease(s Scope) error {
	if s.Lease == "" || leaseTable.Has(tx, s.Namespace, s.Lease) {
		return nil
	}
	return leaseTable.notFound(s.Lease)
}

// leave has the scope's lease let go of something; it need not hold it, nor
// exist.
func (tx *Tx) leave(s Scope, kind, name string) error {
	if s.Lease == "" {
		return nil
	}
	key := []byte(path(s.Namespace, s.Lease, kind, name))
	if tx.bolt.Bucket([]byte(heldBucket)).Get(key) == nil {
		return nil
	}
	tx.garbage = true
	return tx.delete(heldBucket, key)
}

// eachHeld tells what a lease holds.
func (tx *Tx) eachHeld(ns, lease string, visit func(kind, name string)) {
	prefix := path(ns, lease, "")
	for key := range tx.scan(heldBucket, prefix) {
		kind, name, _ := strings.Cut(string(key[len(prefix):]), separator)
		visit(kind, name)
	}
}

// expiry is when labels say that a lease or an image ends; zero if they don't,
// or not readably.
func expiry(given map[string]string) time.Time {
	at, err := time.Parse(time.RFC3339, given[labels.GCExpire])
	if err != nil {
		return time.Time{}
	}
	return at
}
