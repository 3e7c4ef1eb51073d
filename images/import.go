package images

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	imagesapi "github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/metadata"
)

// ImportOptions say what to take from an archive. The zero value imports and
// unpacks the daemon's own platform.
type ImportOptions struct {
	Name         string // for a single image that the archive does not name
	Snapshotter  string // to unpack for; empty: the store's
	Platform     string // os/arch[/variant]; empty: the store's
	AllPlatforms bool   // keep the content of every platform
	NoUnpack     bool   // leave the image packed
}

// Imported is an image that an import made or updated.
type Imported struct {
	Name    string
	Target  ocispec.Descriptor
	ChainID digest.Digest // of the unpacked top layer; empty if not unpacked
}

// Import reads an archive from r, an OCI layout or a docker archive as tar,
// plain or compressed with gzip or zstd, and makes its images. progress, which
// may be nil, is called one at a time, and not after the return.
//
// The images are named once all of them are whole; after an error none is, and
// what was stored goes at the next collection. What is wrong with the archive
// is InvalidArgument, what it lacks NotFound.
func (s *Store) Import(ctx context.Context, scope metadata.Scope, r io.Reader, o ImportOptions, progress func(Progress)) (made []Imported, err error) {
	c, err := s.choose(o.AllPlatforms, o.Platform)
	if err != nil {
		return nil, err
	}
	if o.Name != "" {
		if _, err := Normalize(o.Name); err != nil {
			return nil, err
		}
	}
	if !o.NoUnpack {
		if _, _, err := s.snapshotter(scope, o.Snapshotter); err != nil {
			return nil, err
		}
	}
	err = s.leased(ctx, scope, func(scope metadata.Scope) error {
		l := &loader{blobs: s.DB.Blobs(scope), prefix: "import-" + rand.Text() + "/", progress: progress}
		if err := l.load(ctx, r); err != nil {
			return err
		}
		list, err := l.images(ctx, o.Name)
		if err != nil {
			return err
		}
		made, err = s.finish(ctx, scope, list, c, o, oneByOne(progress))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return made, nil
}

// finish makes images of what was loaded: complete, labelled, unpacked, named.
func (s *Store) finish(ctx context.Context, scope metadata.Scope, list []found, c choice, o ImportOptions, progress func(Progress)) ([]Imported, error) {
	blobs := s.DB.Blobs(scope)
	var made []Imported
	for _, f := range list {
		image, err := resolve(ctx, blobs, f.target, c)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", f.name, err)
		}
		if err := label(ctx, blobs, image); err != nil {
			return nil, fmt.Errorf("image %q: %w", f.name, err)
		}
		one := Imported{Name: f.name, Target: f.target}
		if !o.NoUnpack {
			if image.chosen[0] == nil {
				return nil, fmt.Errorf("image %q: %w", f.name, nothingToUnpack(c.wants[0].text))
			}
			u := unpacking{scope: scope, snapshotter: o.Snapshotter, progress: progress}
			if one.ChainID, err = s.unpack(ctx, u, image.chosen[0]); err != nil {
				return nil, fmt.Errorf("image %q: %w", f.name, err)
			}
		}
		made = append(made, one)
	}
	for _, one := range made {
		if err := s.name(ctx, scope, one, nil); err != nil {
			return nil, err
		}
		s.log().Info("image imported", slog.String("namespace", scope.Namespace), slog.String("image", one.Name),
			slog.String("digest", one.Target.Digest.String()))
	}
	return made, nil
}

// nothingToUnpack says that an image has nothing for a platform.
func nothingToUnpack(platform string) error {
	return fmt.Errorf("there is nothing to unpack for platform %s: ask for another one, or leave it packed: %w", platform, errdefs.ErrNotFound)
}

// name makes the row of an image, or has the one there is point to the target; its
// labels are added.
func (s *Store) name(ctx context.Context, scope metadata.Scope, one Imported, add map[string]string) error {
	mask := []string{"target"}
	for key := range add {
		mask = append(mask, "labels."+key)
	}
	row := &imagesapi.Image{Name: one.Name, Labels: add, Target: &types.Descriptor{
		MediaType: one.Target.MediaType, Digest: one.Target.Digest.String(), Size: one.Target.Size,
	}}
	rows := s.DB.Images(scope)
	for range 3 { // it may come or go between the two
		_, err := rows.Create(ctx, row, nil)
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
		_, err = rows.Update(ctx, row, mask, nil)
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("image %q comes and goes while it is imported: %w", one.Name, errdefs.ErrAborted)
}
