package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/images/v1"
)

// Bounds of what is read of an image, in bytes.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
)

// Media types of Docker's that mean the same as those of OCI.
const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// FindImage finds an image by its name, by the name in its full form (docker.io,
// library, latest), or by the start of its digest. NotFound: there is none;
// FailedPrecondition: the start fits several digests.
func (c *Client) FindImage(ctx context.Context, name string) (*images.Image, error) {
	for _, candidate := range imageNames(name) {
		found, err := c.Images().Get(ctx, &images.GetImageRequest{Name: candidate})
		if err == nil {
			return found.GetImage(), nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("image %q: %w", name, err)
		}
	}
	if !digestStart.MatchString(name) {
		return nil, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	start := strings.TrimPrefix(name, "sha256:")
	list, err := c.Images().List(ctx, &images.ListImagesRequest{Filters: []string{"target.digest~=/^sha256:" + start + "/"}})
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	found := list.GetImages()
	if len(found) == 0 {
		return nil, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	for _, other := range found[1:] {
		if other.GetTarget().GetDigest() != found[0].GetTarget().GetDigest() {
			return nil, fmt.Errorf("image %q: the digests of %q and %q both start so: %w",
				name, found[0].GetName(), other.GetName(), errdefs.ErrFailedPrecondition)
		}
	}
	return found[0], nil
}

// digestStart is text that may be the start of a digest: too short a one would
// be found by accident.
var digestStart = regexp.MustCompile(`^(sha256:)?[0-9a-f]{6,64}$`)

// imageNames lists the names under which an image may be stored that a user
// calls by name.
func imageNames(name string) []string {
	candidates := []string{name}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return candidates
	}
	for _, other := range []string{named.String(), reference.FamiliarString(named)} {
		if !slices.Contains(candidates, other) {
			candidates = append(candidates, other)
		}
	}
	return candidates
}

// ImageConfig is what an image says of the containers made from it.
type ImageConfig struct {
	Image    imagespec.Image
	Manifest imagespec.Descriptor
	Layers   []imagespec.Descriptor
	ChainID  digest.Digest // of the unpacked top layer; empty if there are no layers
	Size     int64         // of manifest, configuration and layers, in bytes

	raw json.RawMessage // the configuration as it is stored
}

// ImageConfig reads the configuration of an image, of the variant for the
// platform that this program runs on. NotFound: it has none for that, or content
// is missing.
func (c *Client) ImageConfig(ctx context.Context, image *images.Image) (*ImageConfig, error) {
	target := image.GetTarget()
	desc := imagespec.Descriptor{MediaType: target.GetMediaType(), Digest: digest.Digest(target.GetDigest()), Size: target.GetSize()}
	config, err := c.imageConfig(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", image.GetName(), err)
	}
	return config, nil
}

// maxIndexes bounds how deep indexes may lie in one another.
const maxIndexes = 4

func (c *Client) imageConfig(ctx context.Context, desc imagespec.Descriptor) (*ImageConfig, error) {
	for range maxIndexes {
		if desc.MediaType != imagespec.MediaTypeImageIndex && desc.MediaType != dockerIndex {
			break
		}
		var index imagespec.Index
		if err := c.readJSON(ctx, desc.Digest, maxManifest, &index); err != nil {
			return nil, err
		}
		var err error
		if desc, err = c.choose(ctx, index.Manifests); err != nil {
			return nil, err
		}
	}
	if desc.MediaType != imagespec.MediaTypeImageManifest && desc.MediaType != dockerManifest {
		return nil, fmt.Errorf("%s is no image, but of media type %q: %w", desc.Digest, desc.MediaType, errdefs.ErrInvalidArgument)
	}
	var manifest imagespec.Manifest
	if err := c.readJSON(ctx, desc.Digest, maxManifest, &manifest); err != nil {
		return nil, err
	}
	config := &ImageConfig{Manifest: desc, Layers: manifest.Layers, Size: desc.Size + manifest.Config.Size}
	for _, layer := range manifest.Layers {
		config.Size += layer.Size
	}
	if err := c.readJSON(ctx, manifest.Config.Digest, maxConfig, &config.raw); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config.raw, &config.Image); err != nil {
		return nil, fmt.Errorf("decode blob %s: %w", manifest.Config.Digest, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	if len(config.Image.RootFS.DiffIDs) > 0 {
		config.ChainID = identity.ChainID(config.Image.RootFS.DiffIDs)
	}
	return config, nil
}

// choose picks the best variant for this program's platform among those whose
// content is there.
func (c *Client) choose(ctx context.Context, manifests []imagespec.Descriptor) (imagespec.Descriptor, error) {
	own := platforms.Default()
	fitting := slices.DeleteFunc(slices.Clone(manifests), func(d imagespec.Descriptor) bool {
		return d.Platform != nil && !own.Match(*d.Platform)
	})
	slices.SortStableFunc(fitting, func(a, b imagespec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case own.Less(*a.Platform, *b.Platform):
			return -1
		case own.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	if len(fitting) == 0 {
		return imagespec.Descriptor{}, fmt.Errorf("no variant for platform %s: %w", platforms.DefaultString(), errdefs.ErrNotFound)
	}
	for _, d := range fitting {
		_, err := c.ReadBlob(ctx, d.Digest, maxManifest)
		if err == nil {
			return d, nil
		}
		if !errdefs.IsNotFound(err) {
			return imagespec.Descriptor{}, err
		}
	}
	return imagespec.Descriptor{}, fmt.Errorf("the content for platform %s is not there: %w", platforms.DefaultString(), errdefs.ErrNotFound)
}

func (c *Client) readJSON(ctx context.Context, d digest.Digest, limit int64, v any) error {
	data, err := c.ReadBlob(ctx, d, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode blob %s: %w", d, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	return nil
}
