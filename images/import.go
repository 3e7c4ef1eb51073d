package images

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"slices"

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

	Labels    map[string]string // for the images, beside those that they have
	Platforms []string          // instead of Platform
	Unpack    []UnpackOptions   // instead of Snapshotter and Platform
	Compress  bool              // layers of a docker archive that are not compressed
	// References, unless it is nil, says which images of the archive are taken, and
	// how they are called. There may be none if Index is set.
	References []Reference
	// Index is a name for all that is in the archive, as one image. The others then
	// go when it goes.
	Index string
}

// wants lists the platforms that are wanted, and what to unpack.
func (o ImportOptions) wants() (platforms []string, unpacks []UnpackOptions) {
	platforms = slices.Clone(o.Platforms)
	if len(platforms) == 0 && !o.AllPlatforms {
		platforms = append(platforms, o.Platform)
	}
	switch {
	case o.NoUnpack:
	case len(o.Unpack) > 0:
		unpacks = o.Unpack
	default:
		unpacks = []UnpackOptions{{Snapshotter: o.Snapshotter, Platform: o.Platform}}
	}
	return platforms, unpacks
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
	wanted, unpacks := o.wants()
	first := len(wanted) // of those to unpack
	for _, u := range unpacks {
		wanted = append(wanted, u.Platform)
		if _, _, err := s.snapshotter(scope, u.Snapshotter); err != nil {
			return nil, err
		}
	}
	c, err := s.choose(o.AllPlatforms, wanted...)
	if err != nil {
		return nil, err
	}
	c.artifact = len(unpacks) == 0
	if o.Name != "" {
		if _, err := Normalize(o.Name); err != nil {
			return nil, err
		}
	}
	err = s.leased(ctx, scope, func(scope metadata.Scope) error {
		l := &loader{blobs: s.DB.Blobs(scope), prefix: "import-" + rand.Text() + "/", progress: progress, compress: o.Compress}
		if err := l.load(ctx, r); err != nil {
			return err
		}
		list, err := l.images(ctx, naming{o.Name, o.References, o.Index})
		if err != nil {
			return err
		}
		f := &finisher{s: s, scope: scope, choice: c, unpacks: unpacks, first: first, o: o, progress: oneByOne(progress)}
		made, err = f.all(ctx, list)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return made, nil
}

// finisher makes images of what was loaded.
type finisher struct {
	s        *Store
	scope    metadata.Scope
	choice   choice
	unpacks  []UnpackOptions
	first    int // of the choice's wants that is for unpacks
	o        ImportOptions
	progress func(Progress)
}

// all makes images complete, labelled, unpacked, and then named.
func (f *finisher) all(ctx context.Context, list []found) ([]Imported, error) {
	var made []Imported
	for _, one := range list {
		image, err := f.one(ctx, one)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", one.name, err)
		}
		made = append(made, image)
	}
	for _, one := range made {
		add := f.o.Labels
		if f.o.Index != "" && one.Name != f.o.Index {
			add = ExtraLabels(add, f.o.Index)
		}
		if err := f.s.name(ctx, f.scope, one, add); err != nil {
			return nil, err
		}
		f.s.log().Info("image imported", slog.String("namespace", f.scope.Namespace), slog.String("image", one.Name),
			slog.String("digest", one.Target.Digest.String()))
	}
	return made, nil
}

func (f *finisher) one(ctx context.Context, one found) (made Imported, err error) {
	made = Imported{Name: one.name, Target: one.target}
	blobs := f.s.DB.Blobs(f.scope)
	image, err := resolve(ctx, blobs, one.target, f.choice)
	if err != nil {
		return made, err
	}
	if err := label(ctx, blobs, image); err != nil {
		return made, err
	}
	for i, o := range f.unpacks {
		m := image.chosen[f.first+i]
		if m == nil {
			return made, nothingToUnpack(f.choice.wants[f.first+i].text)
		}
		chain, err := f.s.unpack(ctx, unpacking{scope: f.scope, snapshotter: o.Snapshotter, progress: f.progress}, m)
		if err != nil {
			return made, err
		}
		if i == 0 {
			made.ChainID = chain
		}
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
	rows := s.DB.Images(scope).Held()
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
