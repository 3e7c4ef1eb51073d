package restart

import (
	"context"
	"fmt"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/metadata"
)

// Records is the Store of a database.
type Records struct{ DB *metadata.DB }

// Labelled implements Store.
func (r Records) Labelled(ctx context.Context, label string) ([]Container, error) {
	spaces, err := r.DB.Namespaces().List(ctx)
	if err != nil {
		return nil, err
	}
	var found []Container
	for _, ns := range spaces {
		list, err := r.in(ns.GetName()).List(ctx, fmt.Sprintf("labels.%q", label))
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			found = append(found, Container{ns.GetName(), c.GetId()})
		}
	}
	return found, nil
}

func (r Records) in(namespace string) *metadata.Containers {
	return r.DB.Containers(metadata.Scope{Namespace: namespace})
}

// Get implements Store.
func (r Records) Get(ctx context.Context, namespace, id string) (*containers.Container, error) {
	return r.in(namespace).Get(ctx, id)
}

// SetLabels implements Store.
func (r Records) SetLabels(ctx context.Context, namespace, id string, set map[string]string) error {
	var mask []string
	for key := range set {
		mask = append(mask, "labels."+key)
	}
	_, err := r.in(namespace).Update(ctx, &containers.Container{Id: id, Labels: set}, mask...)
	return err
}

// Rootfs implements Store. A container without a snapshot has its root file
// system in its spec.
func (r Records) Rootfs(ctx context.Context, namespace string, c *containers.Container) ([]*types.Mount, error) {
	if c.GetSnapshotKey() == "" {
		return nil, nil
	}
	s, err := r.DB.Snapshotter(metadata.Scope{Namespace: namespace}, c.GetSnapshotter())
	if err != nil {
		return nil, err
	}
	mounts, err := s.Mounts(ctx, c.GetSnapshotKey())
	if err != nil {
		return nil, err
	}
	out := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out, nil
}
