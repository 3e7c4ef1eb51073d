package metadata

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/labels"
)

// PruneOptions say what nobody is taken to need any more.
type PruneOptions struct {
	Namespace string    // only in this one; empty: in all
	Before    time.Time // only what was not changed since
	// Containers are removed of which this says that they do not run; nil: none.
	// Those that are to be restarted and those of sandboxes stay.
	Containers func(ns, id string) (idle bool)
	Images     bool // those that no container is left of
}

// Pruned is a thing that went, or would go.
type Pruned struct {
	Kind, Namespace, Name string
	Snapshotter           string // of a snapshot
	Bytes                 int64  // of the object itself
	Failed                error  // why it stays all the same
}

// Prunable lists what would go: the containers and images, and the objects that
// a collection would remove without them. It is collection's own mark that
// tells.
func (db *DB) Prunable(ctx context.Context, o PruneOptions) ([]Pruned, error) {
	usage, err := db.Usage(ctx) // measures, so it comes ahead of the transaction
	if err != nil {
		return nil, err
	}
	sizes := map[Pruned]int64{}
	for _, object := range usage.Objects {
		for _, ns := range object.Namespaces {
			sizes[Pruned{Kind: object.Kind, Namespace: ns, Name: object.Name, Snapshotter: object.Snapshotter}] = object.Bytes
		}
	}
	var out []Pruned
	err = db.View(func(tx *Tx) error {
		without := map[node]bool{}
		if err := tx.prunableContainers(o, without); err != nil {
			return err
		}
		if o.Images {
			if err := db.prunableImages(ctx, tx, o, without); err != nil {
				return err
			}
		}
		m := newMarker(tx.now, db.ingests.isHeld)
		m.without = without
		if err := m.roots(ctx, tx); err != nil {
			return err
		}
		if err := m.follow(ctx, tx); err != nil {
			return err
		}
		for _, kind := range []kind{kindContainer, kindImage, kindIngest, kindSnapshot, kindContent} {
			for key := range tx.scan(nodeBuckets[kind], "") {
				ns, rest, _ := cut(string(key))
				n := node{kind, ns, rest}
				if m.marks[n] != unmarked || kind <= kindImage && !without[n] {
					continue
				}
				l := link(n)
				p := Pruned{Kind: l.Kind, Namespace: ns, Name: l.Name, Snapshotter: l.Snapshotter}
				p.Bytes = sizes[p]
				out = append(out, p)
			}
		}
		return nil
	})
	return out, err
}

// prunableContainers adds the containers that may go.
func (tx *Tx) prunableContainers(o PruneOptions, without map[node]bool) error {
	if o.Containers == nil {
		return nil
	}
	for key, value := range tx.scan(containerTable.bucket, "") {
		ns, id, _ := cut(string(key))
		row, err := containerTable.decode(ns, id, value)
		if err != nil {
			return err
		}
		if o.in(ns, row.GetUpdatedAt().AsTime()) && row.Sandbox == "" && row.Labels[labels.RestartStatus] != "running" && o.Containers(ns, id) {
			without[node{kindContainer, ns, id}] = true
		}
	}
	return nil
}

// prunableImages adds the images that no container stands on which stays.
func (db *DB) prunableImages(ctx context.Context, tx *Tx, o PruneOptions, without map[node]bool) error {
	s := newSurvey(db)
	s.without = without
	if err := s.look(ctx, tx); err != nil {
		return err
	}
	for image, n := range s.containers() {
		row, err := imageTable.Get(tx, image.ns, image.key)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 && o.in(image.ns, row.GetUpdatedAt().AsTime()) {
			without[image] = true
		}
	}
	return nil
}

func (o PruneOptions) in(ns string, changed time.Time) bool {
	return (o.Namespace == "" || o.Namespace == ns) && (o.Before.IsZero() || changed.Before(o.Before))
}
