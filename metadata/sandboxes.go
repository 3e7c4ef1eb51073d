package metadata

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Sandboxes is the sandbox records of a namespace. Whether a sandbox runs is not
// known here.
type Sandboxes struct {
	db    *DB
	scope Scope
}

// Sandboxes is the store of sandbox records.
func (db *DB) Sandboxes(s Scope) *Sandboxes { return &Sandboxes{db, s} }

func (s *Sandboxes) check(id string) error {
	if err := names.Namespace(s.scope.Namespace); err != nil {
		return err
	}
	if err := names.Identifier(id); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	return nil
}

// Get gives a sandbox: NotFound.
func (s *Sandboxes) Get(_ context.Context, id string) (*types.Sandbox, error) {
	if err := s.check(id); err != nil {
		return nil, err
	}
	var row *types.Sandbox
	err := s.db.View(func(tx *Tx) (err error) {
		row, err = sandboxTable.Get(tx, s.scope.Namespace, id)
		return err
	})
	return row, err
}

// List gives the sandboxes that one of the filters matches (fields id and
// labels), in byte order of their ids.
func (s *Sandboxes) List(_ context.Context, filters ...string) (out []*types.Sandbox, err error) {
	if err := names.Namespace(s.scope.Namespace); err != nil {
		return nil, err
	}
	err = s.db.View(func(tx *Tx) (err error) {
		out, err = list(sandboxTable.All(tx, s.scope.Namespace, ""), sandboxFields, filters)
		return err
	})
	return out, err
}

// Create records a sandbox: InvalidArgument, AlreadyExists. It gives what is
// stored.
func (s *Sandboxes) Create(ctx context.Context, sandbox *types.Sandbox) (*types.Sandbox, error) {
	if err := s.check(sandbox.GetSandboxId()); err != nil {
		return nil, err
	}
	row := proto.CloneOf(sandbox)
	row.Labels = kept(row.Labels)
	if err := validSandbox(row); err != nil {
		return nil, err
	}
	err := s.db.Update(ctx, func(tx *Tx) error {
		row.CreatedAt = timestamppb.New(tx.now)
		row.UpdatedAt = row.CreatedAt
		return sandboxTable.Create(tx, s.scope.Namespace, row.SandboxId, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Update changes what the mask names, or everything that can be changed:
// NotFound, InvalidArgument. It gives what is stored.
func (s *Sandboxes) Update(ctx context.Context, sandbox *types.Sandbox, mask ...string) (*types.Sandbox, error) {
	if err := s.check(sandbox.GetSandboxId()); err != nil {
		return nil, err
	}
	var row *types.Sandbox
	err := s.db.Update(ctx, func(tx *Tx) (err error) {
		row, err = sandboxTable.Get(tx, s.scope.Namespace, sandbox.SandboxId)
		if err != nil {
			return err
		}
		if err := maskSandbox(row, sandbox, mask); err != nil {
			return err
		}
		if err := validSandbox(row); err != nil {
			return err
		}
		row.UpdatedAt = timestamppb.New(tx.now)
		return sandboxTable.Update(tx, s.scope.Namespace, row.SandboxId, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Delete removes a sandbox record: NotFound.
func (s *Sandboxes) Delete(ctx context.Context, id string) error {
	if err := s.check(id); err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *Tx) error {
		return sandboxTable.Delete(tx, s.scope.Namespace, id)
	})
}

// validSandbox checks a record as it is about to be stored.
func validSandbox(s *types.Sandbox) error {
	if _, ok := s.Extensions[""]; ok {
		return fmt.Errorf("sandbox %q: an extension without a name: %w", s.SandboxId, errdefs.ErrInvalidArgument)
	}
	if err := labels.Validate(s.Labels); err != nil {
		return fmt.Errorf("sandbox %q: %w", s.SandboxId, err)
	}
	return nil
}

// sandboxPaths are what is changed without a mask.
var sandboxPaths = []string{"labels", "extensions", "spec", "runtime"}

// maskSandbox takes from given what the mask names.
func maskSandbox(row, given *types.Sandbox, mask []string) error {
	if len(mask) == 0 {
		if was, is := row.GetRuntime().GetName(), given.GetRuntime().GetName(); was != is {
			return fmt.Errorf("sandbox %q: the runtime can't be changed from %q to %q: %w", row.SandboxId, was, short(is), errdefs.ErrInvalidArgument)
		}
		mask = sandboxPaths
	}
	for _, path := range mask {
		if maskLabels(path, "labels", &row.Labels, given.Labels) {
			continue
		}
		if key, ok := subKey(path, "extensions"); ok {
			row.Extensions = maskAny(row.Extensions, given.Extensions, key)
			continue
		}
		switch path {
		case "spec":
			row.Spec = given.Spec
		case "extensions":
			row.Extensions = given.Extensions
		case "runtime":
			row.Runtime = given.Runtime
		default:
			return badPath("sandbox", path)
		}
	}
	return nil
}

// maskAny takes one entry over, or its absence.
func maskAny(row, given map[string]*anypb.Any, key string) map[string]*anypb.Any {
	value, ok := given[key]
	if !ok {
		delete(row, key)
		return row
	}
	if row == nil {
		row = map[string]*anypb.Any{}
	}
	row[key] = value
	return row
}
