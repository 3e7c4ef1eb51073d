package metadata

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata/rows"
)

// Namespaces is the namespaces and their labels. Most come into being by being
// used.
type Namespaces struct{ db *DB }

// Namespaces is the store of namespaces.
func (db *DB) Namespaces() *Namespaces { return &Namespaces{db} }

// Create makes a namespace: InvalidArgument, AlreadyExists, the latter also
// when mere use made it.
func (n *Namespaces) Create(ctx context.Context, ns *namespaces.Namespace) (*namespaces.Namespace, error) {
	row := &namespaces.Namespace{Name: ns.GetName(), Labels: kept(ns.GetLabels())}
	if err := names.Identifier(row.Name); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if err := labels.Validate(row.Labels); err != nil {
		return nil, err
	}
	err := n.db.Update(ctx, func(tx *Tx) error {
		_, exists, err := tx.namespace(row.Name)
		if err != nil {
			return err
		}
		if exists {
			return fmt.Errorf("namespace %q: %w", row.Name, errdefs.ErrAlreadyExists)
		}
		tx.publish(row.Name, "/namespaces/create", &apievents.NamespaceCreate{Name: row.Name, Labels: cloneLabels(row.Labels)})
		return tx.putNamespace(row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Get gives a namespace. One that does not exist is given without labels.
func (n *Namespaces) Get(_ context.Context, name string) (*namespaces.Namespace, error) {
	var row *namespaces.Namespace
	err := n.db.View(func(tx *Tx) (err error) {
		row, _, err = tx.namespace(name)
		return err
	})
	return row, err
}

// List gives all namespaces that exist, in byte order of their names.
func (n *Namespaces) List(context.Context) ([]*namespaces.Namespace, error) {
	var out []*namespaces.Namespace
	err := n.db.View(func(tx *Tx) error {
		for _, name := range tx.namespaces() {
			row, _, err := tx.namespace(name)
			if err != nil {
				return err
			}
			out = append(out, row)
		}
		return nil
	})
	return out, err
}

// Update replaces the labels of a namespace, or those that the mask names as
// "labels.KEY"; any other path is InvalidArgument. A namespace that is missing
// is made.
func (n *Namespaces) Update(ctx context.Context, ns *namespaces.Namespace, mask ...string) (*namespaces.Namespace, error) {
	if err := names.Identifier(ns.GetName()); err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	for _, path := range mask {
		if _, ok := subKey(path, "labels"); !ok {
			return nil, badPath("namespace", path)
		}
	}
	var row *namespaces.Namespace
	err := n.db.Update(ctx, func(tx *Tx) (err error) {
		row, _, err = tx.namespace(ns.Name)
		if err != nil {
			return err
		}
		if err := updateLabels("namespace", &row.Labels, ns.Labels, mask); err != nil {
			return err
		}
		tx.publish(ns.Name, "/namespaces/update", &apievents.NamespaceUpdate{Name: ns.Name, Labels: cloneLabels(ns.Labels)})
		return tx.putNamespace(row)
	})
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(row), nil
}

// Delete removes a namespace with its leases and ingests: NotFound, and
// FailedPrecondition while it has images, content, containers, snapshots
// or sandboxes.
func (n *Namespaces) Delete(ctx context.Context, name string) error {
	var ingests []*rows.Ingest
	err := n.db.Update(ctx, func(tx *Tx) error {
		ingests = nil
		if err := tx.canDeleteNamespace(name); err != nil {
			return err
		}
		for row, err := range ingestTable.All(tx, name, "") {
			if err != nil {
				return err
			}
			ingests = append(ingests, row)
		}
		for _, bucket := range []string{leaseTable.bucket, heldBucket, ingestTable.bucket} {
			if err := tx.deletePrefix(bucket, path(name, "")); err != nil {
				return err
			}
		}
		tx.garbage = true
		tx.publish(name, "/namespaces/delete", &apievents.NamespaceDelete{Name: name})
		return tx.delete(namespacesBucket, []byte(name))
	})
	for _, row := range ingests {
		ref := row.GetStatus().GetRef()
		if err != nil && n.db.hasIngest(name, ref, row.BackendRef) || n.db.ingests.abort(name, ref, row.BackendRef) {
			continue
		}
		if err := n.db.discard(ctx, row.BackendRef); err != nil {
			n.db.log.Warn("ingest not removed, trying again later", slog.String("ref", row.BackendRef), slog.Any("error", err))
		}
	}
	return err
}

// canDeleteNamespace is NotFound or FailedPrecondition if it can't.
func (tx *Tx) canDeleteNamespace(name string) error {
	_, exists, err := tx.namespace(name)
	if err != nil {
		return err
	}
	if !exists {
		return fmt.Errorf("namespace %q: %w", short(name), errdefs.ErrNotFound)
	}
	for _, has := range []struct {
		what  string
		empty bool
	}{
		{"images", imageTable.Empty(tx, name)},
		{"content", blobTable.Empty(tx, name)},
		{"containers", containerTable.Empty(tx, name)},
		{"snapshots", snapshotTable.Empty(tx, name)},
		{"sandboxes", sandboxTable.Empty(tx, name)},
		{"mounts", activationTable.Empty(tx, name)},
	} {
		if !has.empty {
			return fmt.Errorf("namespace %q still has %s: %w", name, has.what, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
