package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/metadata"
)

// Exporting is what happens to an object that is written to an archive, Exported
// that it is there.
const (
	Exporting = "exporting"
	Exported  = "exported"
)

// maxExported bounds the images of one archive.
const maxExported = 1000

// Named is an image of the store.
type Named struct {
	Name   string
	Target ocispec.Descriptor
}

// ExportOptions say what of images goes into an archive. The zero value takes the
// daemon's own platform.
type ExportOptions struct {
	Platforms    []string // os/arch[/variant]; empty: the store's
	AllPlatforms bool     // every platform that the images name; all must be there
	NoDocker     bool     // leave out manifest.json, without which docker loads no archive by itself
	NoForeign    bool     // leave out layers that must not be passed on
}

// Export writes images to w as a tar that is an OCI layout, and that docker loads
// too. Images stay what they are: of one that is for several platforms the index is
// written whole, whichever of them are chosen. The same images give the same bytes.
//
// progress, which may be nil, is called one at a time, and not after the return.
// NotFound: a blob is missing, or there is nothing for a platform.
func (s *Store) Export(ctx context.Context, scope metadata.Scope, list []Named, w io.Writer, o ExportOptions, progress func(Progress)) error {
	if len(list) == 0 || len(list) > maxExported {
		return invalid("export: there are to be 1 to %d images, and not %d", maxExported, len(list))
	}
	wanted := o.Platforms
	if len(wanted) == 0 {
		wanted = []string{""}
	}
	c, err := s.choose(o.AllPlatforms, wanted...)
	if err != nil {
		return err
	}
	c.artifact = true
	progress = oneByOne(progress)
	err = s.leased(ctx, scope, func(scope metadata.Scope) error {
		e := &exporter{blobs: s.DB.Blobs(scope), options: o, progress: progress, at: map[digest.Digest]bool{}}
		for _, one := range list {
			held := &leases.Resource{Id: one.Target.Digest.String(), Type: "content"}
			if err := s.DB.Leases(scope).AddResource(ctx, scope.Lease, held); err != nil {
				return err
			}
			if err := e.add(ctx, one, c); err != nil {
				return fmt.Errorf("image %q: %w", one.Name, err)
			}
		}
		return e.write(ctx, w)
	})
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// exporter collects what goes into an archive, then writes it.
type exporter struct {
	blobs    *metadata.Blobs
	options  ExportOptions
	progress func(Progress)

	index  []ocispec.Descriptor // of index.json
	docker []dockerImage        // manifest.json
	files  []ocispec.Descriptor // in the order in which they are written
	at     map[digest.Digest]bool
}

// add notes an image and what belongs to it.
func (e *exporter) add(ctx context.Context, one Named, c choice) error {
	w := &walker{blobs: e.blobs, choice: c, image: &image{target: one.Target}}
	if err := w.choose(ctx); err != nil {
		return err
	}
	entry := one.Target
	entry.Annotations = map[string]string{nameAnnotation: one.Name}
	tag := nameTag(one.Name)
	if tag != "" {
		entry.Annotations[ocispec.AnnotationRefName] = tag
	}
	e.index = append(e.index, entry)
	for _, node := range w.image.indexes {
		e.file(node.desc)
	}
	for _, m := range w.image.manifests {
		if err := e.manifest(ctx, m); err != nil {
			return err
		}
	}
	if m := firstOf(w.image.chosen); m != nil && KindOf(m.doc.Config.MediaType) == Config {
		e.dockerImage(one.Name, m)
	}
	return nil
}

func firstOf(list []*manifest) *manifest {
	i := slices.IndexFunc(list, func(m *manifest) bool { return m != nil })
	if i < 0 {
		return nil
	}
	return list[i]
}

// manifest notes a manifest with its parts, which all have to be there.
func (e *exporter) manifest(ctx context.Context, m *manifest) error {
	e.file(m.desc)
	for i, d := range m.parts() {
		if i > 0 && e.options.NoForeign && foreign(d.MediaType) {
			continue
		}
		if err := e.check(ctx, m, i, d); err != nil {
			return err
		}
		e.file(d)
	}
	return nil
}

// check makes sure that a part of a manifest is there, as large as it should be.
func (e *exporter) check(ctx context.Context, m *manifest, i int, d ocispec.Descriptor) error {
	what := part(i)
	info, err := e.blobs.Info(ctx, d.Digest)
	switch {
	case errdefs.IsNotFound(err) && foreign(d.MediaType):
		return fmt.Errorf("%s %s of manifest %s is not to be passed on and is not here: export without such layers: %w", what, d.Digest, m.desc.Digest, errdefs.ErrNotFound)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s %s of manifest %s is missing: fetch the image for that platform too, or choose others: %w", what, d.Digest, m.desc.Digest, errdefs.ErrNotFound)
	case err != nil:
		return err
	case info.Size != d.Size:
		return invalid("manifest %s: %s %s has %d bytes, the manifest says %d", m.desc.Digest, what, d.Digest, info.Size, d.Size)
	}
	return nil
}

func (e *exporter) file(d ocispec.Descriptor) {
	if !e.at[d.Digest] {
		e.at[d.Digest] = true
		e.files = append(e.files, d)
	}
}

// dockerImage notes what manifest.json says of an image. Names of the same image
// stand together; those with a digest are none to docker.
func (e *exporter) dockerImage(name string, m *manifest) {
	entry := dockerImage{Config: blobPath(m.doc.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, d := range m.doc.Layers {
		entry.Layers = append(entry.Layers, blobPath(d.Digest))
	}
	i := slices.IndexFunc(e.docker, func(o dockerImage) bool { return o.Config == entry.Config && slices.Equal(o.Layers, entry.Layers) })
	if i < 0 {
		i = len(e.docker)
		e.docker = append(e.docker, entry)
	}
	if nameTag(name) == "" {
		return
	}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		tag := reference.FamiliarString(named)
		if !slices.Contains(e.docker[i].RepoTags, tag) {
			e.docker[i].RepoTags = append(e.docker[i].RepoTags, tag)
		}
	}
}

// nameTag gives the tag of an image name, "" if it has none, or a digest.
func nameTag(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	if _, ok := named.(reference.Digested); ok {
		return ""
	}
	if tagged, ok := named.(reference.Tagged); ok {
		return tagged.Tag()
	}
	return ""
}

// foreign tells whether a layer is one that must not be passed on, and need not be in
// a store: licences keep it where it is.
func foreign(mediaType string) bool {
	return strings.HasPrefix(mediaType, foreignLayer) || strings.HasPrefix(mediaType, dockerForeignLayer)
}

// Layers that registries and archives need not have.
const (
	foreignLayer       = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// blobPath is where a blob is in an OCI layout.
func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// write writes the archive: first what says what is in it, then blobs, those that
// name others before them. So who reads it knows what comes.
func (e *exporter) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	layout := ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: e.index}
	err := errors.Join(smallFile(tw, ocispec.ImageLayoutFile, layout), smallFile(tw, ocispec.ImageIndexFile, index))
	if err == nil && !e.options.NoDocker && len(e.docker) > 0 {
		err = smallFile(tw, dockerFile, e.docker)
	}
	if err != nil {
		return err
	}
	buf := make([]byte, bufferSize)
	for _, d := range e.files {
		if err := e.blob(ctx, tw, d, buf); err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
	}
	return tw.Close()
}

// header is the same for all files but for name and size.
func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444}
}

func smallFile(tw *tar.Writer, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(header(name, int64(len(data)))); err != nil {
		return err
	}
	_, err = io.Copy(tw, bytes.NewReader(data))
	return err
}

// blob writes a blob, and looks whether it is what it should be.
func (e *exporter) blob(ctx context.Context, tw *tar.Writer, d ocispec.Descriptor, buf []byte) (err error) {
	r, err := e.blobs.Open(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := tw.WriteHeader(header(blobPath(d.Digest), r.Size())); err != nil {
		return err
	}
	verifier := d.Digest.Verifier()
	for at := int64(0); at < r.Size(); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), r.Size()-at)], at)
		if err != nil && !(errors.Is(err, io.EOF) && at+int64(n) == r.Size()) {
			return err
		}
		verifier.Write(buf[:n]) // never fails
		if _, err := tw.Write(buf[:n]); err != nil {
			return err
		}
		at += int64(n)
		tell(e.progress, progressOf(d, Exporting, at))
	}
	if !verifier.Verified() {
		return fmt.Errorf("its bytes have another digest, it is damaged: %w", errdefs.ErrDataLoss)
	}
	tell(e.progress, progressOf(d, Exported, d.Size))
	return nil
}
