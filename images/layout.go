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
func (l *loader) images(ctx context.Context, n naming) (all []found, err error) {
	switch {
	case l.index != nil:
		all, err = l.layout(ctx, n)
	case l.docker != nil:
		all, err = l.dockerImages(ctx, n)
	default:
		return nil, invalid("archive: it has neither index.json nor manifest.json: " +
			"an OCI layout or what `docker save` writes is needed")
	}
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, fmt.Errorf("archive: no image in it has a name that is asked for: %w", errdefs.ErrNotFound)
	case len(all) > maxEntries:
		return nil, invalid("archive: it has %d names of images, more than %d", len(all), maxEntries)
	}
	return all, nil
}

// layout lists the images of an OCI layout.
func (l *loader) layout(ctx context.Context, n naming) ([]found, error) {
	var has lengths
	var index ocispec.Index
	err := json.Unmarshal(l.index, &has)
	if err == nil && has.Manifests > maxEntries {
		return nil, invalid("archive: index.json names %d manifests, more than %d", has.Manifests, maxEntries)
	}
	if err == nil {
		err = json.Unmarshal(l.index, &index)
	}
	if err != nil {
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
		names, err := n.of(full, tag, d.Digest)
		if err != nil {
			return nil, err
		}
		d.Annotations = nil
		for _, name := range names {
			if named[name] == nil {
				order = append(order, name)
			}
			if !slices.ContainsFunc(named[name], func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
				named[name] = append(named[name], d)
			}
		}
	}
	var all []found
	if n.index != "" {
		target, err := l.ingest(ctx, ocispec.ImageIndexFile, "", int64(len(l.index)), bytes.NewReader(l.index))
		if err != nil {
			return nil, fmt.Errorf("store index.json: %w", err)
		}
		target.MediaType = ocispec.MediaTypeImageIndex
		all = append(all, found{n.index, target})
	}
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
func (l *loader) dockerImages(ctx context.Context, n naming) ([]found, error) {
	var has length
	var list []dockerImage
	err := json.Unmarshal(l.docker, &has)
	if err == nil && has > maxEntries {
		return nil, invalid("archive: %s has %d images, more than %d", dockerFile, has, maxEntries)
	}
	if err == nil {
		err = json.Unmarshal(l.docker, &list)
	}
	if err != nil {
		return nil, invalid("archive: %s: %v", dockerFile, err)
	}
	if len(list) == 0 {
		return nil, invalid("archive: %s names no image", dockerFile)
	}
	var all []found
	var targets []ocispec.Descriptor
	for _, entry := range list {
		if len(entry.RepoTags) == 0 && n.refs == nil && (n.name == "" || len(list) > 1) {
			return nil, invalid("archive: %s does not name image %q: save it by name, or give a single one a name", dockerFile, entry.Config)
		}
		target, err := l.dockerManifest(ctx, entry)
		if err != nil {
			return nil, err
		}
		targets = append(targets, target)
		names, err := n.docker(entry.RepoTags, target.Digest)
		if err != nil {
			return nil, fmt.Errorf("archive: %s: %w", dockerFile, err)
		}
		for _, name := range names {
			all = append(all, found{name, target})
		}
	}
	if n.index == "" {
		return all, nil
	}
	whole, err := l.document(ctx, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: targets,
	})
	return append([]found{{n.index, whole}}, all...), err
}

func (l *loader) dockerManifest(ctx context.Context, entry dockerImage) (ocispec.Descriptor, error) {
	if len(entry.Layers) > maxEntries {
		return ocispec.Descriptor{}, invalid("archive: %s: image %q has %d layers, more than %d", dockerFile, entry.Config, len(entry.Layers), maxEntries)
	}
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
		if l.compress && layer.MediaType == dockerLayer {
			if layer, err = l.pack(ctx, layer); err != nil {
				return layer, fmt.Errorf("compress layer %q: %w", name, err)
			}
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
