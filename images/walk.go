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
	maxDocument = 8 << 20 // bytes of an index, manifest or config
	maxDepth    = 4       // indexes in indexes
	maxEntries  = 4096    // manifests of one image
)

// image is what a descriptor leads to.
type image struct {
	target    ocispec.Descriptor
	indexes   []indexNode
	manifests []*manifest // those kept
	chosen    *manifest   // the one for the wanted platform
}

type indexNode struct {
	desc     ocispec.Descriptor
	children []ocispec.Descriptor
}

// manifest is a manifest with what belongs to it.
type manifest struct {
	desc     ocispec.Descriptor
	platform ocispec.Platform // zero: not known
	doc      ocispec.Manifest
}

// keeps tells whether a descriptor is that of a kept index or manifest.
func (i *image) keeps(d ocispec.Descriptor) bool {
	return slices.ContainsFunc(i.manifests, func(m *manifest) bool { return m.desc.Digest == d.Digest }) ||
		slices.ContainsFunc(i.indexes, func(n indexNode) bool { return n.desc.Digest == d.Digest })
}

// walker reads what belongs to an image.
type walker struct {
	blobs *metadata.Blobs
	image *image
	seen  []*manifest // of all platforms
}

// resolve reads target and what it leads to, and chooses. NotFound where
// something is missing, or there is nothing for the wanted platform.
func resolve(ctx context.Context, blobs *metadata.Blobs, target ocispec.Descriptor, c choice) (*image, error) {
	w := &walker{blobs: blobs, image: &image{target: target}}
	if err := w.visit(ctx, target, 0); err != nil {
		return nil, err
	}
	for _, m := range w.seen {
		if !c.want.Match(m.platform) {
			continue
		}
		if best := w.image.chosen; best == nil || c.want.Less(m.platform, best.platform) {
			w.image.chosen = m
		}
	}
	if w.image.chosen == nil && !c.every {
		return nil, fmt.Errorf("there is nothing for platform %s, only for %s: ask for one of these: %w", c.text, w.list(), errdefs.ErrNotFound)
	}
	for _, m := range w.seen {
		keep := m == w.image.chosen
		if !keep && c.every {
			// Attestations are no platform; they may be missing.
			err := w.open(ctx, m)
			if err != nil && (m.platform.OS != "unknown" || !errors.Is(err, errdefs.ErrNotFound)) {
				return nil, err
			}
			keep = err == nil
		}
		if keep {
			w.image.manifests = append(w.image.manifests, m)
		}
	}
	for _, m := range w.image.manifests {
		if err := w.check(ctx, m); err != nil {
			return nil, err
		}
	}
	return w.image, nil
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
func (w *walker) visit(ctx context.Context, d ocispec.Descriptor, depth int) error {
	if depth > maxDepth {
		return invalid("index %s: more than %d indexes in each other", d.Digest, maxDepth)
	}
	switch KindOf(d.MediaType) {
	case Index:
		var doc ocispec.Index
		if err := w.read(ctx, "index", d, &doc); err != nil {
			return err
		}
		if len(w.seen)+len(doc.Manifests) > maxEntries {
			return invalid("index %s: the image has more than %d manifests", d.Digest, maxEntries)
		}
		w.image.indexes = append(w.image.indexes, indexNode{d, doc.Manifests})
		for _, child := range doc.Manifests {
			switch KindOf(child.MediaType) {
			case Index, Manifest:
				if err := w.visit(ctx, child, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	case Manifest:
		return w.meet(ctx, d)
	}
	return invalid("%s is of media type %q, which is no image", d.Digest, d.MediaType)
}

// meet notes a manifest. Where the index does not tell its platform its config
// does.
func (w *walker) meet(ctx context.Context, d ocispec.Descriptor) error {
	m := &manifest{desc: d}
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
		if d.Digest == w.image.target.Digest {
			return notAnImage(m)
		}
		return nil
	}
	config, err := readConfig(ctx, w.blobs, m.doc.Config)
	if err != nil {
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
	if err := w.read(ctx, "manifest", m.desc, &m.doc); err != nil {
		return err
	}
	if m.doc.Config.Digest == "" {
		return invalid("manifest %s names no config", m.desc.Digest)
	}
	return nil
}

// check makes sure that everything that a manifest names is there.
func (w *walker) check(ctx context.Context, m *manifest) error {
	if err := w.open(ctx, m); err != nil {
		return err
	}
	for i, d := range append([]ocispec.Descriptor{m.doc.Config}, m.doc.Layers...) {
		what := "config"
		if i > 0 {
			what = fmt.Sprintf("layer %d", i)
		}
		if err := d.Digest.Validate(); err != nil {
			return invalid("manifest %s: %s has the digest %q: %v", m.desc.Digest, what, d.Digest, err)
		}
		info, err := w.blobs.Info(ctx, d.Digest)
		if err != nil {
			return missing(what, d.Digest, m.desc.Digest, err)
		}
		if info.Size != d.Size {
			return invalid("manifest %s: %s %s has %d bytes, the manifest says %d", m.desc.Digest, what, d.Digest, info.Size, d.Size)
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

// read reads an index or manifest. A document that could be taken for both is
// refused: two programs would see two images (CVE-2021-41190).
func (w *walker) read(ctx context.Context, what string, d ocispec.Descriptor, into any) error {
	data, err := readDocument(ctx, w.blobs, what, d)
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
	if err := json.Unmarshal(data, into); err != nil {
		return invalid("%s %s: %v", what, d.Digest, err)
	}
	return nil
}

// readConfig reads the config of an image.
func readConfig(ctx context.Context, blobs *metadata.Blobs, d ocispec.Descriptor) (*ocispec.Image, error) {
	data, err := readDocument(ctx, blobs, "config", d)
	if err != nil {
		return nil, err
	}
	config := &ocispec.Image{}
	if err := json.Unmarshal(data, config); err != nil {
		return nil, invalid("config %s: %v", d.Digest, err)
	}
	return config, nil
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
