package testimage

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// nameAnnotation has the whole name of an image in an index.json; the OCI one
// has only a tag, as most tools write it.
const nameAnnotation = "io.containerd.image.name"

// Layout is an OCI image layout. A test may change it before it is written.
type Layout struct {
	Index ocispec.Index
	Blobs map[digest.Digest][]byte
}

// NewLayout makes the layout of some images.
func NewLayout(compression string, images ...Image) (*Layout, error) {
	l := &Layout{
		Index: ocispec.Index{Versioned: schema, MediaType: ocispec.MediaTypeImageIndex},
		Blobs: map[digest.Digest][]byte{},
	}
	for _, image := range images {
		manifest, err := l.Add(compression, image)
		if err != nil {
			return nil, err
		}
		if err := l.List(manifest, image.Name); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Add adds the blobs of an image and gives the descriptor of its manifest.
func (l *Layout) Add(compression string, image Image) (ocispec.Descriptor, error) {
	config, err := image.ConfigJSON()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest := ocispec.Manifest{
		Versioned: schema, MediaType: ocispec.MediaTypeImageManifest,
		Config: l.Blob(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{},
	}
	for _, layer := range image.Layers {
		blob, mediaType, err := compress(layer, compression)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		manifest.Layers = append(manifest.Layers, l.Blob(mediaType, blob))
	}
	d, err := l.JSON(manifest.MediaType, manifest)
	platform := image.platform()
	d.Platform = &platform
	return d, err
}

// AddIndex adds an index of manifests.
func (l *Layout) AddIndex(manifests ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	return l.JSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: schema, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

// Blob adds a blob.
func (l *Layout) Blob(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	l.Blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// JSON adds a blob that is the JSON of v.
func (l *Layout) JSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.Blob(mediaType, data), nil
}

// List puts an image into index.json, with its name unless that is empty.
func (l *Layout) List(d ocispec.Descriptor, name string) error {
	if name != "" {
		named, err := reference.ParseDockerRef(name)
		if err != nil {
			return fmt.Errorf("image name %q: %w", name, err)
		}
		d.Annotations = map[string]string{nameAnnotation: named.String()}
		if tagged, ok := named.(reference.Tagged); ok {
			d.Annotations[ocispec.AnnotationRefName] = tagged.Tag()
		}
	}
	l.Index.Manifests = append(l.Index.Manifests, d)
	return nil
}

// Files gives all files of the layout, by path.
func (l *Layout) Files() (map[string][]byte, error) {
	index, err := json.Marshal(l.Index)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`),
		ocispec.ImageIndexFile:  index,
	}
	for d, data := range l.Blobs {
		files["blobs/"+d.Algorithm().String()+"/"+d.Encoded()] = data
	}
	return files, nil
}

// WriteTar writes the layout as a tar.
func (l *Layout) WriteTar(w io.Writer) error {
	files, err := l.Files()
	if err != nil {
		return err
	}
	return WriteFiles(w, files)
}

// WriteDir writes the layout as a directory.
func (l *Layout) WriteDir(dir string) error {
	files, err := l.Files()
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// WriteFiles writes files as a tar, in the order of their paths.
func WriteFiles(w io.Writer, files map[string][]byte) error {
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), ModTime: Time}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(files[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}
