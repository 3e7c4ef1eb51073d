package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/counted"
	"github.com/berthd/berth/internal/labels"
)

// Compressions of layers that Convert makes.
const (
	LayersAsTheyAre = ""
	LayersPlain     = "plain"
	LayersGzip      = "gzip"
	LayersZstd      = "zstd"
)

// ConvertOptions say what an image is converted to. Name is required.
type ConvertOptions struct {
	Name      string   // of the new image, in short or in full
	Layers    string   // LayersAsTheyAre, ...
	Platforms []string // os/arch[/variant]; none: all that the image names, which have to be here
	// Progress is told how much of a layer has been read; nil: nobody.
	Progress func(layer digest.Digest, done, total int64)
}

// Convert makes another image with the same files: of OCI's media types, with its
// layers compressed otherwise, for some platforms. Its configs are the same ones, so
// what is unpacked of the one image is of the other too. What is attached to manifests
// (attestations) is about the old ones and is left out. Call it under a lease.
//
// NotFound: content is missing, or there is nothing for a platform.
func (c *Client) Convert(ctx context.Context, image *images.Image, o ConvertOptions) (*images.Image, error) {
	name, err := imageName(o.Name)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]string{LayersAsTheyAre, LayersPlain, LayersGzip, LayersZstd}, o.Layers) {
		return nil, fmt.Errorf("layers can be %s, %s or %s, not %q: %w", LayersPlain, LayersGzip, LayersZstd, o.Layers, errdefs.ErrInvalidArgument)
	}
	v := &converter{c: c, o: o, layers: map[digest.Digest]imagespec.Descriptor{}}
	target, err := v.image(ctx, descriptor(image.GetTarget()))
	if err != nil {
		return nil, fmt.Errorf("convert image %q: %w", image.GetName(), err)
	}
	return c.nameImage(ctx, name, target)
}

// converter is one conversion.
type converter struct {
	c      *Client
	o      ConvertOptions
	layers map[digest.Digest]imagespec.Descriptor // what became of each
}

// image converts what a descriptor leads to.
func (v *converter) image(ctx context.Context, d imagespec.Descriptor) (imagespec.Descriptor, error) {
	if d.MediaType != imagespec.MediaTypeImageIndex && d.MediaType != dockerIndex {
		return v.manifest(ctx, d)
	}
	var index imagespec.Index
	if err := v.c.readJSON(ctx, d.Digest, maxManifest, &index); err != nil {
		return d, err
	}
	kept, err := v.choose(index.Manifests)
	if err != nil {
		return d, err
	}
	made := imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex, Annotations: index.Annotations}
	marks := map[string]string{}
	for i, m := range kept {
		one, err := v.manifest(ctx, m)
		if err != nil {
			return d, err
		}
		if len(kept) == 1 && len(v.o.Platforms) > 0 {
			return one, nil
		}
		one.Platform, one.Annotations = m.Platform, m.Annotations
		made.Manifests = append(made.Manifests, one)
		marks[labels.GCRefManifest+strconv.Itoa(i)] = one.Digest.String()
	}
	return v.document(ctx, made.MediaType, made, marks)
}

// choose gives the manifests of the wanted platforms.
func (v *converter) choose(list []imagespec.Descriptor) ([]imagespec.Descriptor, error) {
	list = slices.DeleteFunc(slices.Clone(list), func(d imagespec.Descriptor) bool { return d.Platform != nil && d.Platform.OS == "unknown" })
	if len(v.o.Platforms) == 0 {
		if len(list) == 0 {
			return nil, fmt.Errorf("its index names no image: %w", errdefs.ErrNotFound)
		}
		return list, nil
	}
	var kept []imagespec.Descriptor
	for _, text := range v.o.Platforms {
		p, err := platforms.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		want := platforms.Only(p)
		best := -1
		for i, d := range list {
			if d.Platform != nil && want.Match(*d.Platform) && (best < 0 || want.Less(*d.Platform, *list[best].Platform)) {
				best = i
			}
		}
		if best < 0 {
			return nil, fmt.Errorf("there is nothing for platform %s: %w", text, errdefs.ErrNotFound)
		}
		if !slices.ContainsFunc(kept, func(d imagespec.Descriptor) bool { return d.Digest == list[best].Digest }) {
			kept = append(kept, list[best])
		}
	}
	return kept, nil
}

// manifest converts a manifest and its layers.
func (v *converter) manifest(ctx context.Context, d imagespec.Descriptor) (imagespec.Descriptor, error) {
	if d.MediaType != imagespec.MediaTypeImageManifest && d.MediaType != dockerManifest {
		return d, fmt.Errorf("%s is no image, but of media type %q: %w", d.Digest, d.MediaType, errdefs.ErrInvalidArgument)
	}
	var manifest imagespec.Manifest
	if err := v.c.readJSON(ctx, d.Digest, maxManifest, &manifest); err != nil {
		return d, err
	}
	var config imagespec.Image
	if err := v.c.readJSON(ctx, manifest.Config.Digest, maxConfig, &config); err != nil {
		return d, err
	}
	if d.Platform == nil { // else it was chosen by what the index says
		alone := d
		alone.Platform = &config.Platform
		if _, err := v.choose([]imagespec.Descriptor{alone}); err != nil {
			return d, err
		}
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return d, fmt.Errorf("manifest %s has %d layers, its config %d: %w", d.Digest, len(manifest.Layers), len(config.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	manifest.MediaType, manifest.Config.MediaType = imagespec.MediaTypeImageManifest, imagespec.MediaTypeImageConfig
	marks := map[string]string{labels.GCRefConfig: manifest.Config.Digest.String()}
	for i, layer := range manifest.Layers {
		if err := config.RootFS.DiffIDs[i].Validate(); err != nil {
			return d, fmt.Errorf("config %s: diff id %q of layer %d: %w: %w", manifest.Config.Digest, config.RootFS.DiffIDs[i], i+1, err, errdefs.ErrInvalidArgument)
		}
		made, err := v.layer(ctx, layer, config.RootFS.DiffIDs[i])
		if err != nil {
			return d, fmt.Errorf("layer %d (%s): %w", i+1, layer.Digest, err)
		}
		manifest.Layers[i] = made
		marks[labels.GCRefLayer+strconv.Itoa(i)] = made.Digest.String()
	}
	return v.document(ctx, manifest.MediaType, manifest, marks)
}

// document writes a manifest or index.
func (v *converter) document(ctx context.Context, mediaType string, doc any, marks map[string]string) (imagespec.Descriptor, error) {
	data, err := json.Marshal(doc)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	d, err := v.c.WriteBlob(ctx, data, marks)
	return imagespec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

// ociLayer is OCI's media type of a layer that is not compressed.
const ociLayer = imagespec.MediaTypeImageLayer

// layer converts a layer. One that is not to be passed on stays as it is, as nobody
// may have its content.
func (v *converter) layer(ctx context.Context, d imagespec.Descriptor, diffID digest.Digest) (imagespec.Descriptor, error) {
	if made, ok := v.layers[d.Digest]; ok {
		return made, nil
	}
	how, ok := diff.Compression(d.MediaType)
	if !ok {
		return d, fmt.Errorf("media type %q is none of a layer: %w", d.MediaType, errdefs.ErrInvalidArgument)
	}
	if foreignLayer(d.MediaType) {
		return d, nil
	}
	want := v.o.Layers
	if want == LayersAsTheyAre && how == diff.Unknown {
		want = LayersPlain // docker's type says nothing of what it is, OCI's has to
	}
	made := d
	if want == LayersAsTheyAre || want == how || want == LayersPlain && how == diff.Plain {
		made.MediaType = mediaTypeOf(how)
	} else {
		var err error
		if made, err = v.pack(ctx, d, diffID, want); err != nil {
			return d, err
		}
	}
	v.layers[d.Digest] = made
	return made, nil
}

// foreignLayer tells whether a layer is one that is not to be passed on.
func foreignLayer(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.")
}

// mediaTypeOf is OCI's media type for a compression.
func mediaTypeOf(compression string) string {
	switch compression {
	case LayersGzip, LayersZstd:
		return ociLayer + "+" + compression
	}
	return ociLayer
}

// pack writes a layer anew.
func (v *converter) pack(ctx context.Context, d imagespec.Descriptor, diffID digest.Digest, want string) (made imagespec.Descriptor, err error) {
	from, err := v.c.openBlob(ctx, d.Digest)
	if err != nil {
		return d, err
	}
	defer from.Close()
	to, err := v.c.createBlob(ctx)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()

	whole := digest.Canonical.Digester()
	sum := &counted.Writer{W: io.MultiWriter(to, whole.Hash())}
	packed, err := diff.Compress(sum, mediaTypeOf(want))
	if err != nil {
		return d, err
	}
	plain := diffID.Algorithm().Digester()
	read := &counted.Reader{R: from}
	if v.o.Progress != nil {
		read.Tell = func(n int64) { v.o.Progress(d.Digest, n, d.Size) }
	}
	uncompressed, err := diff.Decompress(read)
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(packed, plain.Hash())}, uncompressed, make([]byte, blobPart))
		err = errors.Join(err, uncompressed.Close())
	}
	// An encoder has goroutines until it is closed.
	if closed := packed.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return d, err
	}
	if got := plain.Digest(); got != diffID {
		return d, fmt.Errorf("uncompressed it is %s, the config says %s: the image is damaged, build or fetch it again: %w", got, diffID, errdefs.ErrDataLoss)
	}
	var marks map[string]string
	if want != LayersPlain {
		marks = map[string]string{labels.Uncompressed: diffID.String()}
	}
	made = imagespec.Descriptor{MediaType: mediaTypeOf(want), Digest: whole.Digest(), Size: sum.N, Annotations: d.Annotations}
	return made, to.Commit(ctx, made.Digest, marks)
}
