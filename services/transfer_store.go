package services

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	imagesapi "github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/images"
)

// tag gives an image of the store another name.
func (c *transferCall) tag(ctx context.Context, from, to *transfer.ImageStore) error {
	row, err := c.db.Images(c.scope).Get(ctx, from.GetName())
	if err != nil {
		return err
	}
	if to.GetName() == "" && len(to.GetExtraReferences()) == 0 {
		return fmt.Errorf("tag image %.300q: no name for it is given: %w", from.GetName(), errdefs.ErrInvalidArgument)
	}
	if to.GetName() != "" {
		err := c.put(ctx, &imagesapi.Image{Name: to.GetName(), Labels: to.GetLabels(), Target: row.GetTarget()})
		if err != nil {
			return err
		}
	}
	_, err = c.nameExtra(ctx, row.GetTarget(), to)
	return err
}

// find gives what an image of the store stands for: NotFound.
func (c *transferCall) find(ctx context.Context, name string) (ocispec.Descriptor, error) {
	row, err := c.db.Images(c.scope).Get(ctx, name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	t := row.GetTarget()
	return ocispec.Descriptor{
		MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize(), Annotations: t.GetAnnotations(),
	}, nil
}

// nameExtra gives a target the further names that a client wants, and tells which
// they are. Starts of names make one only with a digest: there is no tag for them.
func (c *transferCall) nameExtra(ctx context.Context, target *types.Descriptor, to *transfer.ImageStore) ([]string, error) {
	var made []string
	for _, ref := range to.GetExtraReferences() {
		if ref.GetIsPrefix() && !ref.GetAddDigest() {
			continue
		}
		name := ref.GetName()
		if ref.GetAddDigest() {
			name += "@" + target.GetDigest()
		}
		err := c.put(ctx, &imagesapi.Image{Name: name, Labels: images.ExtraLabels(to.GetLabels(), to.GetName()), Target: target})
		if err != nil {
			return nil, err
		}
		made = append(made, name)
	}
	return made, nil
}

// put makes the row of an image, in place of one of that name.
func (c *transferCall) put(ctx context.Context, row *imagesapi.Image) error {
	rows := c.db.Images(c.scope)
	for range 3 { // it may come or go between the two
		_, err := rows.Create(ctx, row, nil)
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
		_, err = rows.Update(ctx, row, nil, nil)
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("image %.300q comes and goes while it is named: %w", row.GetName(), errdefs.ErrAborted)
}

// pullOptions says what to pull.
func pullOptions(to *transfer.ImageStore) (images.PullOptions, error) {
	o := images.PullOptions{
		Name: to.GetName(), Labels: to.GetLabels(), Documents: to.GetAllMetadata(),
		Platforms: platformsOf(to.GetPlatforms()), AllPlatforms: len(to.GetPlatforms()) == 0,
		Unpack: unpacksOf(to), NoUnpack: len(to.GetUnpacks()) == 0,
	}
	if o.Name == "" {
		return o, missing("name for the image")
	}
	if limit := int(to.GetManifestLimit()); limit > 0 {
		switch {
		case o.AllPlatforms:
			o.Platforms, o.AllPlatforms = []string{""}, false // the store's own
		case len(o.Platforms) > limit:
			o.Platforms = o.Platforms[:limit]
		}
	}
	return o, nil
}

func unpacksOf(to *transfer.ImageStore) []images.UnpackOptions {
	var list []images.UnpackOptions
	for _, u := range to.GetUnpacks() {
		list = append(list, images.UnpackOptions{Snapshotter: u.GetSnapshotter(), Platform: platformOf(u.GetPlatform())})
	}
	return list
}

// importOptions says what to take from an archive.
func importOptions(from *transfer.ImageImportStream, to *transfer.ImageStore) (images.ImportOptions, error) {
	o := images.ImportOptions{
		Index: to.GetName(), Labels: to.GetLabels(), Compress: from.GetForceCompress(),
		Platforms: platformsOf(to.GetPlatforms()), AllPlatforms: len(to.GetPlatforms()) == 0,
		Unpack: unpacksOf(to), NoUnpack: len(to.GetUnpacks()) == 0, References: []images.Reference{},
	}
	if !archiveTypes[from.GetMediaType()] {
		return o, fmt.Errorf("import of %.100q: archives are read as tar: %w", from.GetMediaType(), errdefs.ErrNotImplemented)
	}
	for _, ref := range to.GetExtraReferences() {
		if ref.GetName() == "" {
			return o, fmt.Errorf("a name for images of the archive is empty: %w", errdefs.ErrInvalidArgument)
		}
		o.References = append(o.References, images.Reference{
			Name: ref.GetName(), Prefix: ref.GetIsPrefix(), Overwrite: ref.GetAllowOverwrite(),
			Digest: ref.GetAddDigest(), SkipNamed: ref.GetSkipNamedDigest(),
		})
	}
	return o, nil
}
