package metadata

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Images is the image records of a namespace: names for descriptors. That the
// content a target names exists is not checked.
type Images struct {
	db    *DB
	scope Scope
	held  bool // see Held
}

// Images is the store of image records.
func (db *DB) Images(s Scope) *Images { return &Images{db: db, scope: s} }

// Held is i for one who makes images of what the lease of the scope holds: Create and
// Update are NotFound once the lease is gone, as what it held may be gone with it.
func (i *Images) Held() *Images { return &Images{i.db, i.scope, true} }

func (i *Images) check(name string) error {
	if err := names.Namespace(i.scope.Namespace); err != nil {
		return err
	}
	return text("image name", name)
}

// Get gives an image: NotFound.
func (i *Images) Get(_ context.Context, name string) (*images.Image, error) {
	if err := i.check(name); err != nil {
		return nil, err
	}
	var row *images.Image
	err := i.db.View(func(tx *Tx) (err error) {
		row, err = imageTable.Get(tx, i.scope.Namespace, name)
		return err
	})
	return row, err
}

// List gives the images that one of the filters matches, in byte order of their
// names.
func (i *Images) List(_ context.Context, filters ...string) (out []*images.Image, err error) {
	if err := names.Namespace(i.scope.Namespace); err != nil {
		return nil, err
	}
	err = i.db.View(func(tx *Tx) (err error) {
		out, err = list(imageTable.All(tx, i.scope.Namespace, ""), imageFields, filters)
		return err
	})
	return out, err
}

// Create records an image: InvalidArgument, AlreadyExists. Its times are now,
// or epoch if that is not nil (source_date_epoch). It joins the lease only if
// it expires.
func (i *Images) Create(ctx context.Context, image *images.Image, epoch *timestamppb.Timestamp) (*images.Image, error) {
	if err := i.check(image.GetName()); err != nil {
		return nil, err
	}
	row := proto.CloneOf(image)
	row.Labels = kept(row.Labels)
	if row.Target != nil {
		row.Target.Annotations = kept(row.Target.Annotations)
	}
	if err := validImage(row); err != nil {
		return nil, err
	}
	err := i.db.Update(ctx, func(tx *Tx) error {
		if imageTable.Has(tx, i.scope.Namespace, row.Name) {
			return imageTable.exists(row.Name)
		}
		if err := i.joinLease(tx, row); err != nil {
			return err
		}
		row.CreatedAt = timeOr(epoch, tx.now)
		row.UpdatedAt = row.CreatedAt
		tx.publish(i.scope.Namespace, "/images/create", &images.ImageCreate{Name: row.Name, Labels: cloneLabels(row.Labels)})
		return imageTable.Create(tx, i.scope.Namespace, row.Name, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Update changes what the mask names, or all of the image: NotFound,
// InvalidArgument. epoch, if not nil, is the time of the update. It gives what
// is stored.
func (i *Images) Update(ctx context.Context, image *images.Image, mask []string, epoch *timestamppb.Timestamp) (*images.Image, error) {
	if err := i.check(image.GetName()); err != nil {
		return nil, err
	}
	var row *images.Image
	err := i.db.Update(ctx, func(tx *Tx) (err error) {
		row, err = imageTable.Get(tx, i.scope.Namespace, image.Name)
		if err != nil {
			return err
		}
		target, before := row.GetTarget().GetDigest(), cloneLabels(row.Labels)
		if err := maskImage(row, proto.CloneOf(image), mask); err != nil {
			return err
		}
		if err := validImage(row); err != nil {
			return err
		}
		if err := i.joinLease(tx, row); err != nil {
			return err
		}
		row.UpdatedAt = timeOr(epoch, tx.now)
		tx.garbage = tx.garbage || target != row.Target.Digest || losesReference(before, row.Labels)
		tx.publish(i.scope.Namespace, "/images/update", &images.ImageUpdate{Name: row.Name, Labels: cloneLabels(row.Labels)})
		return imageTable.Update(tx, i.scope.Namespace, row.Name, row)
	})
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Delete removes an image: NotFound, also when target is given and its digest
// is not the stored one.
func (i *Images) Delete(ctx context.Context, name string, target *types.Descriptor) error {
	if err := i.check(name); err != nil {
		return err
	}
	return i.db.Update(ctx, func(tx *Tx) error {
		row, err := imageTable.Get(tx, i.scope.Namespace, name)
		if err != nil {
			return err
		}
		if want := target.GetDigest(); target != nil && want != row.GetTarget().GetDigest() {
			return fmt.Errorf("image %q with target %s: %w", short(name), short(want), errdefs.ErrNotFound)
		}
		if err := tx.leave(i.scope, resourceImages, name); err != nil {
			return err
		}
		tx.garbage = true
		tx.publish(i.scope.Namespace, "/images/delete", &images.ImageDelete{Name: name})
		return imageTable.Delete(tx, i.scope.Namespace, name)
	})
}

// joinLease has an image that expires join the lease.
func (i *Images) joinLease(tx *Tx, row *images.Image) error {
	if i.held {
		if err := tx.needLease(i.scope); err != nil {
			return err
		}
	}
	if _, ok := row.Labels[labels.GCExpire]; !ok {
		return nil
	}
	tx.endsAt(expiry(row.Labels))
	return tx.join(i.scope, resourceImages, row.Name)
}

// validImage checks a record as it is about to be stored.
func validImage(i *images.Image) error {
	bad := func(text string) error {
		return fmt.Errorf("image %q: %s: %w", short(i.Name), text, errdefs.ErrInvalidArgument)
	}
	if err := digest.Digest(i.GetTarget().GetDigest()).Validate(); err != nil {
		return bad(fmt.Sprintf("digest %q of the target: %v", short(i.GetTarget().GetDigest()), err))
	}
	if i.Target.Size <= 0 {
		return bad("the size of the target must be above zero")
	}
	if i.Target.MediaType == "" {
		return bad("the media type of the target is required")
	}
	for _, given := range []map[string]string{i.Labels, i.Target.Annotations} {
		if err := labels.Validate(given); err != nil {
			return fmt.Errorf("image %q: %w", short(i.Name), err)
		}
	}
	return nil
}

// maskImage takes from given, which becomes part of row, what the mask names.
func maskImage(row, given *images.Image, mask []string) error {
	if len(mask) == 0 {
		mask = []string{"labels", "target"}
	}
	for _, path := range mask {
		if maskLabels(path, "labels", &row.Labels, given.Labels) {
			continue
		}
		if row.Target == nil {
			row.Target = &types.Descriptor{}
		}
		if maskLabels(path, "annotations", &row.Target.Annotations, given.GetTarget().GetAnnotations()) {
			continue
		}
		if path != "target" {
			return badPath("image", path)
		}
		row.Target = given.Target
		if row.Target != nil {
			row.Target.Annotations = kept(row.Target.Annotations)
		}
	}
	return nil
}

// timeOr is given, or now if nothing is given.
func timeOr(given *timestamppb.Timestamp, now time.Time) *timestamppb.Timestamp {
	if given != nil {
		return proto.CloneOf(given)
	}
	return timestamppb.New(now)
}
