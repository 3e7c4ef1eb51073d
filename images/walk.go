package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/metadata"
)

const (
	maxDocument  = 8 << 20  // bytes of an index, manifest or config
	maxDocuments = 32 << 20 // bytes of those of one image, each as often as it is named
	maxDepth     = 4        // indexes in indexes
	maxEntries   = 4096     // manifests and indexes of one image, or layers of one manifest
)

// image is what a descriptor leads to.
type image struct {
	target    ocispec.Descriptor
	indexes   []indexNode
	manifests []*manifest // those kept
	documents []*manifest // those of which only manifest and config are kept
	chosen    []*manifest // for each wanted platform the best; nil where there is none
}

type indexNode struct {
	desc     ocispec.Descriptor
	children []ocispec.Descriptor
}

// manifest is a manifest with what belongs to it.
type manifest struct {
	desc     ocispec.Descriptor
	parent   digest.Digest    // the index that names it; empty for the target
	platform ocispec.Platform // zero: not known
	doc      ocispec.Manifest
}

// parts lists config and layers.
func (m *manifest) parts() []ocispec.Descriptor { return partsOf(&m.doc) }

func partsOf(doc *ocispec.Manifest) []ocispec.Descriptor {
	return append([]ocispec.Descriptor{doc.Config}, doc.Layers...)
}

// keeps tells whether a descriptor is that of a kept index or manifest.
func (i *image) keeps(d ocispec.Descriptor) bool {
	is := func(m *manifest) bool { return m.desc.Digest == d.Digest }
	return slices.ContainsFunc(i.manifests, is) || slices.ContainsFunc(i.documents, is) ||
		slices.ContainsFunc(i.indexes, func(n indexNode) bool { return n.desc.Digest == d.Digest })
}

// walker reads what belongs to an image.
type walker struct {
	blobs  *metadata.Blobs
	read   reading
	choice choice
	image  *image
	seen   []*manifest // of all platforms
	// fetch brings a document that may not be there; nil: what is missing is missing.
	fetch func(ctx context.Context, d ocispec.Descriptor, parent digest.Digest) error
}

// resolve reads target and what it leads to, chooses, and makes sure that what was
// chosen is whole. NotFound where something is missing, or there is nothing for a
// wanted platform.
func resolve(ctx context.Context, blobs *metadata.Blobs, target ocispec.Descriptor, c choice) (*image, error) {
	w := &walker{blobs: blobs, choice: c, image: &image{target: target}}
	if err := w.choose(ctx); err != nil {
		return nil, err
	}
	return w.image, w.whole(ctx)
}

// choose reads indexes and manifests, and chooses.
func (w *walker) choose(ctx context.Context) error {
	if err := w.visit(ctx, w.image.target, "", 0); err != nil {
		return err
	}
	w.image.chosen = make([]*manifest, len(w.choice.wants))
	for i, want := range w.choice.wants {
		best := w.best(want)
		if best == nil && !w.choice.every {
			return fmt.Errorf("there is nothing for platform %s, only for %s: ask for one of these: %w", want.text, w.list(), errdefs.ErrNotFound)
		}
		w.image.chosen[i] = best
	}
	for _, m := range w.seen {
		if err := w.keep(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// best gives the best manifest for a platform, nil if there is none.
func (w *walker) best(of want) *manifest {
	var best *manifest
	for _, m := range w.seen {
		whatever := w.choice.artifact && m.desc.Digest == w.image.target.Digest && m.doc.Config.Digest != "" && KindOf(m.doc.Config.MediaType) != Config
		if !whatever && !of.Match(m.platform) {
			continue
		}
		if best == nil || of.Less(m.platform, best.platform) {
			best = m
		}
	}
	return best
}

// keep decides what is kept of a manifest, and reads it if anything is.
func (w *walker) keep(ctx context.Context, m *manifest) error {
	chosen := slices.Contains(w.image.chosen, m)
	if !chosen && !w.choice.every && !w.choice.documents {
		return nil
	}
	err := w.open(ctx, m)
	switch {
	// Attestations are no platform; they may be missing.
	case err != nil && !chosen && m.platform.OS == "unknown" && errors.Is(err, errdefs.ErrNotFound):
	case err != nil:
		return err
	case chosen || w.choice.every:
		w.image.manifests = append(w.image.manifests, m)
	default:
		w.image.documents = append(w.image.documents, m)
	}
	return nil
}

// whole makes sure that everything is there that was chosen.
func (w *walker) whole(ctx context.Context) error {
	for _, m := range w.image.manifests {
		if err := w.check(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) list() string {
	var all []string
	for _, m := range w.seen {
		if text := platforms.Format(m.platform); m.platform.OS != "unknown" && !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	if len(all) == 0 {
		return "none at all"
	}
	return strings.Join(all, ", ")
}

// visit notes the manifests below a descriptor.
func (w *walker) visit(ctx context.Context, d ocispec.Descriptor, parent digest.Digest, depth int) error {
	if depth > maxDepth {
		return invalid("index %s: more than %d indexes in each other", d.Digest, maxDepth)
	}
	switch KindOf(d.MediaType) {
	case Index:
		var doc ocispec.Index
		if err := w.document(ctx, "index", d, parent, &doc); err != nil {
			return err
		}
		w.image.indexes = append(w.image.indexes, indexNode{d, doc.Manifests})
		for _, child := range doc.Manifests {
			switch KindOf(child.MediaType) {
			case Index, Manifest:
				if err := w.visit(ctx, child, d.Digest, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	case Manifest:
		return w.meet(ctx, d, parent)
	}
	return invalid("%s is of media type %q, which is no image", d.Digest, d.MediaType)
}

// meet notes a manifest. Where the index does not tell its platform its config
// does.
func (w *walker) meet(ctx context.Context, d ocispec.Descriptor, parent digest.Digest) error {
	m := &manifest{desc: d, parent: parent}
	w.seen = append(w.seen, m)
	if d.Platform != nil {
		m.platform = platforms.Normalize(*d.Platform)
		return nil
	}
	err := w.open(ctx, m)
	if errdefs.IsNotFound(err) && d.Digest != w.image.target.Digest {
		return nil // then it is for none of the platforms
	}
	if err != nil {
		return err
	}
	if KindOf(m.doc.Config.MediaType) != Config {
		if d.Digest == w.image.target.Digest && !w.choice.artifact {
			return notAnImage(m)
		}
		return nil
	}
	if err := w.bring(ctx, m.doc.Config, d.Digest); err != nil {
		return err
	}
	data, err := w.read.document(ctx, w.blobs, "config", m.doc.Config)
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := decode("config", m.doc.Config, data, &config); err != nil {
		return err
	}
	m.platform = platforms.Normalize(config.Platform)
	return nil
}

// notAnImage is for manifests of other things.
func notAnImage(m *manifest) error {
	return invalid("manifest %s is no container image: its config is of media type %q", m.desc.Digest, m.doc.Config.MediaType)
}

// open reads a manifest, unless that has been done.
func (w *walker) open(ctx context.Context, m *manifest) error {
	if m.doc.Config.Digest != "" {
		return nil
	}
	if err := w.document(ctx, "manifest", m.desc, m.parent, &m.doc); err != nil {
		return err
	}
	if m.doc.Config.Digest == "" {
		return invalid("manifest %s names no config", m.desc.Digest)
	}
	for i, d := range m.parts() {
		if err := d.Digest.Validate(); err != nil {
			return invalid("manifest %s: %s has the digest %q: %v", m.desc.Digest, part(i), d.Digest, err)
		}
		if d.Size < 0 {
			return invalid("manifest %s: %s is said to have %d bytes", m.desc.Digest, part(i), d.Size)
		}
	}
	return nil
}

// part names a part of a manifest: the config is 0.
func part(i int) string {
	if i == 0 {
		return "config"
	}
	return fmt.Sprintf("layer %d", i)
}

// bring fetches a document if that is the walker's to do.
func (w *walker) bring(ctx context.Context, d ocispec.Descriptor, parent digest.Digest) error {
	if w.fetch == nil {
		return nil
	}
	return w.fetch(ctx, d, parent)
}

// check makes sure that everything that a manifest names is there.
func (w *walker) check(ctx context.Context, m *manifest) error {
	if err := w.open(ctx, m); err != nil {
		return err
	}
	for i, d := range m.parts() {
		info, err := w.blobs.Info(ctx, d.Digest)
		if err != nil {
			return missing(part(i), d.Digest, m.desc.Digest, err)
		}
		if info.Size != d.Size {
			return invalid("manifest %s: %s %s has %d bytes, the manifest says %d", m.desc.Digest, part(i), d.Digest, info.Size, d.Size)
		}
	}
	return nil
}

// missing says that a blob is not there, if that is what err says.
func missing(what string, d, parent digest.Digest, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%s %s of manifest %s is missing: save or fetch the image again: %w", what, d, parent, errdefs.ErrNotFound)
	}
	return err
}

// document reads an index or manifest. A document that could be taken for both is
// refused: two programs would see two images (CVE-2021-41190).
func (w *walker) document(ctx context.Context, what string, d ocispec.Descriptor, parent digest.Digest, into any) error {
	if err := w.bring(ctx, d, parent); err != nil {
		return fmt.Errorf("%s %s: %w", what, d.Digest, err)
	}
	data, err := w.read.document(ctx, w.blobs, what, d)
	if err != nil {
		return err
	}
	var both struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(data, &both); err != nil {
		return invalid("%s %s: %v", what, d.Digest, err)
	}
	index := KindOf(d.MediaType) == Index
	if index && (both.Config != nil || both.Layers != nil) || !index && both.Manifests != nil ||
		both.MediaType != "" && KindOf(both.MediaType) != KindOf(d.MediaType) {
		return invalid("%s %s does not have the fields of its media type %q", what, d.Digest, d.MediaType)
	}
	return decode(what, d, data, into)
}

// reading bounds what is read of one image: its documents may name one another, and
// the same one, any number of times.
type reading struct {
	entries int   // that indexes have
	bytes   int64 // of documents
}

// document reads a document that belongs to the image. What an index or a manifest
// lists is counted before it takes memory.
func (r *reading) document(ctx context.Context, blobs *metadata.Blobs, what string, d ocispec.Descriptor) ([]byte, error) {
	data, err := readDocument(ctx, blobs, what, d)
	if err != nil {
		return nil, err
	}
	if r.bytes += int64(len(data)); r.bytes > maxDocuments {
		return nil, invalid("%s %s: the documents of the image have more than %d bytes", what, d.Digest, maxDocuments)
	}
	if kind := KindOf(d.MediaType); kind != Index && kind != Manifest {
		return data, nil
	}
	var has lengths
	if err := decode(what, d, data, &has); err != nil {
		return nil, err
	}
	if r.entries += int(has.Manifests); r.entries > maxEntries {
		return nil, invalid("%s %s: the image has more than %d manifests", what, d.Digest, maxEntries)
	}
	if n := has.Layers; n > maxEntries {
		return nil, invalid("%s %s has %d layers, more than %d", what, d.Digest, n, maxEntries)
	}
	return data, nil
}

// lengths are of what an index or a manifest lists.
type lengths struct{ Manifests, Layers length }

// length is how many entries a list has, or several of the same name.
type length int

// UnmarshalJSON implements json.Unmarshaler.
func (l *length) UnmarshalJSON(data []byte) error {
	var list []struct{}
	err := json.Unmarshal(data, &list)
	*l += length(len(list))
	return err
}

// readConfig reads the config of an image.
func readConfig(ctx context.Context, blobs *metadata.Blobs, d ocispec.Descriptor) (*ocispec.Image, error) {
	data, err := readDocument(ctx, blobs, "config", d)
	if err != nil {
		return nil, err
	}
	config := &ocispec.Image{}
	return config, decode("config", d, data, config)
}

func decode(what string, d ocispec.Descriptor, data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return invalid("%s %s: %v", what, d.Digest, err)
	}
	return nil
}

// readDocument reads a small blob whole.
func readDocument(ctx context.Context, blobs *metadata.Blobs, what string, d ocispec.Descriptor) (_ []byte, err error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, invalid("%s %q: %v", what, d.Digest, err)
	}
	r, err := blobs.Open(ctx, d.Digest)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s %s is missing: save or fetch the image again: %w", what, d.Digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Size() > maxDocument {
		return nil, invalid("%s %s has %d bytes, more than %d", what, d.Digest, r.Size(), maxDocument)
	}
	if d.Size > 0 && r.Size() != d.Size {
		return nil, invalid("%s %s has %d bytes, its descriptor says %d", what, d.Digest, r.Size(), d.Size)
	}
	data := make([]byte, r.Size())
	if _, err := r.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s %s: %w", what, d.Digest, err)
	}
	return data, nil
}
