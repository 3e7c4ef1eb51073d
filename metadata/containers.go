package metadata

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Containers is the container records of a namespace. That an image, snapshot
// or sandbox they name exists is not checked.
type Containers struct {
	db    *DB
	scope Scope
}

// Containers is the store of container records.
func (db *DB) Containers(s Scope) *Containers { return &Containers{db, s} }

// Get gives a container: NotFound.
func (c *Containers) Get(_ context.Context, id string) (*containers.Container, error) {
	if err := c.check(id); err != nil {
		return nil, err
	}
	var row *containers.Container
	err := c.db.View(func(tx *Tx) (err error) {
		row, err = containerTable.Get(tx, c.scope.Namespace, id)
		return err
	})
	return row, err
}

func (c *Containers) check(id string) error {
	if err := names.Namespace(c.scope.Namespace); err != nil {
		return err
	}
	if err := names.Identifier(id); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	return nil
}

// List gives the containers that one of the filters matches, in byte order of
// their ids.
func (c *Containers) List(_ context.Context, filters ...string) (out []*containers.Container, err error) {
	if err := names.Namespace(c.scope.Namespace); err != nil {
		return nil, err
	}
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, err
	}
	err = c.db.View(func(tx *Tx) (err error) {
		out, err = containerTable.decodeAll(tx, c.scope.Namespace, func(value []byte) bool {
			return len(filters) == 0 || match.Match(rawContainer(value))
		})
		return err
	})
	return out, err
}

// Stored is List for who passes containers on: each is the message that is
// stored, which takes a small part of the time to decode and encode it.
func (c *Containers) Stored(_ context.Context, filters ...string) (out [][]byte, err error) {
	if err := names.Namespace(c.scope.Namespace); err != nil {
		return nil, err
	}
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, err
	}
	err = c.db.View(func(tx *Tx) error {
		for key, value := range tx.scan(containerTable.bucket, path(c.scope.Namespace, "")) {
			if len(filters) > 0 && !match.Match(rawContainer(value)) {
				continue
			}
			if eachField(value, func(protowire.Number, []byte) error { return nil }) != nil {
				_, err := containerTable.decode(c.scope.Namespace, string(key[len(c.scope.Namespace)+1:]), value)
				return err
			}
			out = append(out, bytes.Clone(value))
		}
		return nil
	})
	return out, err
}

// Create records a container: InvalidArgument, AlreadyExists. It gives what is
// stored.
func (c *Containers) Create(ctx context.Context, container *containers.Container) (*containers.Container, error) {
	if err := c.check(container.GetId()); err != nil {
		return nil, err
	}
	row := proto.CloneOf(container)
	row.Labels = kept(row.Labels)
	if err := validContainer(row); err != nil {
		return nil, err
	}
	err := c.db.Update(ctx, func(tx *Tx) error {
		row.CreatedAt = timestamppb.New(tx.now)
		row.UpdatedAt = row.CreatedAt
		created := &apievents.ContainerCreate{
			Id: row.Id, Image: row.Image,
			Runtime: &apievents.ContainerCreate_Runtime{Name: row.Runtime.Name, Options: row.Runtime.Options},
		}
		tx.publish(c.scope.Namespace, "/containers/create", proto.CloneOf(created))
		return containerTable.Create(tx, c.scope.Namespace, row.Id, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Update changes what the mask names, or everything that can be changed:
// NotFound, InvalidArgument. It gives what is stored.
func (c *Containers) Update(ctx context.Context, container *containers.Container, mask ...string) (*containers.Container, error) {
	if err := c.check(container.GetId()); err != nil {
		return nil, err
	}
	var row *containers.Container
	err := c.db.Update(ctx, func(tx *Tx) (err error) {
		row, err = containerTable.Get(tx, c.scope.Namespace, container.Id)
		if err != nil {
			return err
		}
		key, before := row.SnapshotKey, cloneLabels(row.Labels)
		if err := maskContainer(row, container, mask); err != nil {
			return err
		}
		if err := validContainer(row); err != nil {
			return err
		}
		row.UpdatedAt = timestamppb.New(tx.now)
		tx.garbage = tx.garbage || key != row.SnapshotKey || losesReference(before, row.Labels)
		tx.publish(c.scope.Namespace, "/containers/update", &apievents.ContainerUpdate{
			Id: row.Id, Image: row.Image, Labels: cloneLabels(row.Labels), SnapshotKey: row.SnapshotKey,
		})
		return containerTable.Update(tx, c.scope.Namespace, row.Id, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Delete removes a container record: NotFound.
func (c *Containers) Delete(ctx context.Context, id string) error {
	if err := c.check(id); err != nil {
		return err
	}
	return c.db.Update(ctx, func(tx *Tx) error {
		tx.garbage = true
		tx.publish(c.scope.Namespace, "/containers/delete", &apievents.ContainerDelete{Id: id})
		return containerTable.Delete(tx, c.scope.Namespace, id)
	})
}

// validContainer checks a record as it is about to be stored.
func validContainer(c *containers.Container) error {
	bad := func(text string) error {
		return fmt.Errorf("container %q: %s: %w", c.Id, text, errdefs.ErrInvalidArgument)
	}
	switch {
	case c.GetRuntime().GetName() == "":
		return bad("the name of a runtime is required")
	case c.Spec == nil:
		return bad("a spec is required")
	case c.SnapshotKey != "" && c.Snapshotter == "":
		return bad("a snapshot key needs a snapshotter")
	}
	if _, ok := c.Extensions[""]; ok {
		return bad("an extension without a name")
	}
	if err := labels.Validate(c.Labels); err != nil {
		return fmt.Errorf("container %q: %w", c.Id, err)
	}
	return nil
}

// containerPaths are what is changed without a mask.
var containerPaths = []string{"labels", "spec", "extensions", "image", "snapshotkey"}

// maskContainer takes from given what the mask names.
func maskContainer(row, given *containers.Container, mask []string) error {
	if len(mask) == 0 {
		if was, is := row.GetRuntime().GetName(), given.GetRuntime().GetName(); was != is {
			return fmt.Errorf("container %q: the runtime can't be changed from %q to %q: %w", row.Id, was, short(is), errdefs.ErrInvalidArgument)
		}
		if was, is := row.Snapshotter, given.Snapshotter; was != is {
			return fmt.Errorf("container %q: the snapshotter can't be changed from %q to %q: %w", row.Id, was, short(is), errdefs.ErrInvalidArgument)
		}
		mask = containerPaths
	}
	for _, path := range mask {
		if maskLabels(path, "labels", &row.Labels, given.Labels) {
			continue
		}
		if key, ok := subKey(path, "extensions"); ok {
			maskExtension(row, given, key)
			continue
		}
		switch path {
		case "spec":
			row.Spec = given.Spec
		case "extensions":
			row.Extensions = given.Extensions
		case "image":
			row.Image = given.Image
		case "snapshotkey":
			row.SnapshotKey = given.SnapshotKey
		default:
			return badPath("container", path)
		}
	}
	return nil
}

func maskExtension(row, given *containers.Container, key string) {
	value, ok := given.Extensions[key]
	if !ok {
		delete(row.Extensions, key)
		return
	}
	if row.Extensions == nil {
		row.Extensions = map[string]*anypb.Any{}
	}
	row.Extensions[key] = value
}
