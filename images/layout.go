package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// found is an image that an archive has.
type found struct {
	name   string
	target ocispec.Descriptor
}

// images lists what was loaded. An archive that is both an OCI layout and a
// docker archive is read as the former.
func (l *loader) images(ctx context.Context, name string) ([]found, error) {
	switch {
	case l.index != nil:
		return l.layout(ctx, name)
	case l.docker != nil:
		return l.dockerImages(ctx, name)
	}
	return nil, invalid("archive: it has neither index.json nor manifest.json: " +
		"an OCI layout or what `docker save` writes is needed")
}

// layout lists the images of an OCI layout.
func (l *loader) layout(ctx context.Context, name string) ([]found, error) {
	var index ocispec.Index
	if err := json.Unmarshal(l.index, &index); err != nil {
		return nil, invalid("archive: index.json: %v", err)
	}
	if len(index.Manifests) == 0 {
		return nil, invalid("archive: index.json names no manifest, so there is no image in it")
	}
	var order []string
	named := map[string][]ocispec.Descriptor{}
	for _, d := range index.Manifests {
		full, tag, err := nameOf(d)
		if err != nil {
			return nil, fmt.Errorf("archive: index.json: %w", err)
		}
		if err := d.Digest.Validate(); err != nil {
			return nil, invalid("archive: index.json: digest %q: %v", d.Digest, err)
		}
		if full == "" {
			if name == "" {
				return nil, invalid("archive: index.json does not name image %s: give it a name", d.Digest)
			}
			if full, err = withTag(name, tag); err != nil {
				return nil, err
			}
		}
		if named[full] == nil {
			order = append(order, full)
		}
		if !slices.ContainsFunc(named[full], func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			d.Annotations = nil
			named[full] = append(named[full], d)
		}
	}
	var all []found
	for _, full := range order {
		target, err := l.join(ctx, full, named[full])
		if err != nil {
			return nil, err
		}
		all = append(all, found{full, target})
	}
	return all, nil
}

// join makes one target of what index.json has under one name: several
// manifests for different platforms become an index.
func (l *loader) join(ctx context.Context, name string, list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if len(list) == 1 {
		target := list[0]
		target.Platform = nil
		return target, nil
	}
	for _, d := range list {
		if KindOf(d.MediaType) != Manifest || d.Platform == nil {
			return d, invalid("archive: index.json has several images for the name %q: import them one by one", name)
		}
	}
	return l.document(ctx, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list,
	})
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerImages lists the images of a docker archive, and makes the manifests
// that it does not have.
func (l *loader) dockerImages(ctx context.Context, name string) ([]found, error) {
	var list []dockerImage
	if err := json.Unmarshal(l.docker, &list); err != nil {
		return nil, invalid("archive: %s: %v", dockerFile, err)
	}
	if len(list) == 0 {
		return nil, invalid("archive: %s names no image", dockerFile)
	}
	var all []found
	for _, entry := range list {
		tags := entry.RepoTags
		if len(tags) == 0 {
			if name == "" || len(list) > 1 {
				return nil, invalid("archive: %s does not name image %q: save it by name, or give a single one a name", dockerFile, entry.Config)
			}
			tags = []string{name}
		}
		target, err := l.dockerManifest(ctx, entry)
		if err != nil {
			return nil, err
		}
		for _, tag := range tags {
			full, err := Normalize(tag)
			if err != nil {
				return nil, fmt.Errorf("archive: %s: %w", dockerFile, err)
			}
			all = append(all, found{full, target})
		}
	}
	return all, nil
}

func (l *loader) dockerManifest(ctx context.Context, entry dockerImage) (ocispec.Descriptor, error) {
	doc := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerManifest, Layers: []ocispec.Descriptor{}}
	var err error
	if doc.Config, err = l.find(entry.Config); err != nil {
		return doc.Config, err
	}
	doc.Config.MediaType = dockerConfig
	for _, name := range entry.Layers {
		layer, err := l.find(name)
		if err != nil {
			return layer, err
		}
		if layer.MediaType, err = l.layerType(ctx, layer); err != nil {
			return layer, err
		}
		doc.Layers = append(doc.Layers, layer)
	}
	return l.document(ctx, dockerManifest, doc)
}

// layerType finds out how a layer is compressed.
func (l *loader) layerType(ctx context.Context, d ocispec.Descriptor) (_ string, err error) {
	r, err := l.blobs.Open(ctx, d.Digest)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var head [4]byte
	if _, err := r.ReadAt(head[:], 0); err != nil && err != io.EOF {
		return "", fmt.Errorf("read layer %s: %w", d.Digest, err)
	}
	switch {
	case bytes.HasPrefix(head[:], []byte{0x1f, 0x8b}):
		return dockerLayerGzip, nil
	case head == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		return dockerLayerZstd, nil
	}
	return dockerLayer, nil
}

// document stores a manifest or index that the archive does not have.
func (l *loader) document(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := l.ingest(ctx, mediaType, "", int64(len(data)), bytes.NewReader(data))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return d, fmt.Errorf("store %s: %w", mediaType, err)
	}
	d.MediaType = mediaType
	return d, nil
}
