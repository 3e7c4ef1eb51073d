package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/internal/counted"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
)

// PushOptions say what to push. The zero value pushes what is here of an image.
type PushOptions struct {
	// Platforms are os/arch[/variant]; none: all that are here, whole.
	Platforms []string
	// AllPlatforms pushes the image as it is, which needs all of it.
	AllPlatforms bool
}

// Push gives a registry the image that target leads to, under the reference that the
// registry was opened with, and returns what the reference stands for then. Where only
// some platforms of an image are pushed, that is the one manifest, or an index of
// them. progress is called one at a time, and not after the return.
//
// Blobs come first, then the manifests that name them, the tag last: a push that is
// cut off leaves nothing half done under a name. NotFound: a part of the image is
// missing, or there is nothing for a platform.
func (s *Store) Push(ctx context.Context, scope metadata.Scope, target ocispec.Descriptor, to Registry, o PushOptions, progress func(Progress)) (ocispec.Descriptor, error) {
	start := time.Now()
	p := &push{store: s, to: to, blobs: s.DB.Blobs(scope), progress: oneByOne(progress)}
	pushed, err := p.run(ctx, target, o)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push %s to %q: %w", target.Digest, to.Reference(), err)
	}
	s.log().Info("image pushed", slog.String("namespace", scope.Namespace), slog.String("reference", to.Reference().String()),
		slog.String("digest", pushed.Digest.String()), slog.Duration("took", time.Since(start)))
	return pushed, nil
}

// push is one push.
type push struct {
	store    *Store
	to       Registry
	blobs    *metadata.Blobs
	progress func(Progress)
}

func (p *push) run(ctx context.Context, target ocispec.Descriptor, o PushOptions) (ocispec.Descriptor, error) {
	c, err := p.store.choose(true, o.Platforms...)
	if err != nil {
		return target, err
	}
	c.every, c.artifact = len(o.Platforms) == 0, true
	w := &walker{blobs: p.blobs, choice: c, image: &image{target: target}}
	part, err := p.choose(ctx, w, o)
	if err != nil {
		return target, err
	}
	if err := p.sendBlobs(ctx, w.image); err != nil {
		return target, err
	}
	for _, m := range w.image.manifests {
		if part == nil && m.desc.Digest == target.Digest || part != nil && m.desc.Digest == part.Digest {
			continue
		}
		if err := p.sendStored(ctx, m.desc, ""); err != nil {
			return target, err
		}
	}
	if part != nil {
		return part.Descriptor, p.sendPart(ctx, part)
	}
	// What is nested deepest was read last.
	for _, node := range slices.Backward(w.image.indexes) {
		if node.desc.Digest == target.Digest {
			continue
		}
		if err := p.sendStored(ctx, node.desc, ""); err != nil {
			return target, err
		}
	}
	if err := p.named(target.Digest); err != nil {
		return target, err
	}
	return target, p.sendStored(ctx, target, tagOf(p.to.Reference()))
}

// tagOf is the tag that a push sets; with a digest there is none.
func tagOf(ref remotes.Reference) string {
	if ref.Digest != "" {
		return ""
	}
	return ref.Tag
}

// partial is what stands for some platforms of an image.
type partial struct {
	ocispec.Descriptor
	body []byte // nil: it is stored
}

// choose finds out what is pushed. part is nil for the image as it is.
func (p *push) choose(ctx context.Context, w *walker, o PushOptions) (part *partial, err error) {
	if err := w.visit(ctx, w.image.target, "", 0); err != nil {
		return nil, err
	}
	var kept []*manifest
	if len(o.Platforms) > 0 {
		for _, want := range w.choice.wants {
			best := w.best(want)
			if best == nil {
				return nil, fmt.Errorf("there is nothing for platform %s, only for %s: %w", want.text, w.list(), errdefs.ErrNotFound)
			}
			if !slices.Contains(kept, best) {
				kept = append(kept, best)
			}
		}
	} else {
		kept = w.seen
	}
	var lacking error
	for _, m := range kept {
		err := w.check(ctx, m)
		switch {
		case err == nil:
			w.image.manifests = append(w.image.manifests, m)
		case !errdefs.IsNotFound(err) || o.AllPlatforms || len(o.Platforms) > 0:
			return nil, err
		case lacking == nil:
			lacking = err
		}
	}
	images := slices.DeleteFunc(slices.Clone(w.image.manifests), func(m *manifest) bool { return m.platform.OS == "unknown" })
	switch {
	case len(w.image.manifests) == len(w.seen):
		return nil, nil
	case len(images) == 0:
		return nil, lacking
	case len(images) == 1:
		w.image.manifests = images
		return &partial{Descriptor: plain(images[0].desc)}, nil
	}
	return newIndex(w.image.manifests)
}

// plain drops what an index says of a manifest.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// newIndex makes an index of manifests.
func newIndex(list []*manifest) (*partial, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, m := range list {
		d := m.desc
		if d.Platform == nil {
			platform := m.platform
			d.Platform = &platform
		}
		index.Manifests = append(index.Manifests, d)
	}
	body, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return &partial{ocispec.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}, body}, nil
}

// sendBlobs pushes the configs and layers of an image, each once.
func (p *push) sendBlobs(ctx context.Context, i *image) error {
	blobs, ctx := errgroup.WithContext(ctx)
	blobs.SetLimit(maxFetches)
	seen := map[digest.Digest]bool{}
	for _, m := range i.manifests {
		for n, d := range m.parts() {
			if seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			waiting := progressOf(d, Waiting, 0)
			waiting.Parent = m.desc.Digest
			tell(p.progress, waiting)
			blobs.Go(func() error {
				if err := p.sendBlob(ctx, d); err != nil {
					return fmt.Errorf("%s: %w", part(n), err)
				}
				return nil
			})
		}
	}
	return blobs.Wait()
}

// sendBlob pushes one blob, or has the registry take it from another repository.
func (p *push) sendBlob(ctx context.Context, d ocispec.Descriptor) error {
	info, err := p.blobs.Info(ctx, d.Digest)
	if err != nil {
		return err
	}
	ref := p.to.Reference()
	var from []string
	if known := info.Labels[labels.DistributionSource+ref.Registry]; known != "" {
		from = strings.Split(known, ",")
	}
	how, err := p.to.PushBlob(ctx, d, from, func() (io.ReadCloser, error) { return p.open(ctx, d) })
	if err != nil {
		return err
	}
	if how == remotes.Existed {
		tell(p.progress, progressOf(d, Exists, d.Size))
	} else {
		tell(p.progress, progressOf(d, Uploaded, d.Size))
	}
	f := &fetcher{blobs: p.blobs, from: p.to}
	return f.addSource(ctx, d.Digest)
}

// open opens a blob and tells how much of it has been read.
func (p *push) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := p.blobs.Open(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	told := int64(-tellEvery)
	c := &counted.Reader{R: io.NewSectionReader(r, 0, r.Size()), Tell: func(n int64) {
		if n-told >= tellEvery {
			told = n
			tell(p.progress, progressOf(d, Uploading, n))
		}
	}}
	return struct {
		io.Reader
		io.Closer
	}{c, r}, nil
}

// sendStored pushes a manifest or index that is in the store.
func (p *push) sendStored(ctx context.Context, d ocispec.Descriptor, tag string) error {
	body, err := readDocument(ctx, p.blobs, "manifest", d)
	if err != nil {
		return err
	}
	return p.send(ctx, d, body, tag)
}

// named makes sure that a reference by digest is pushed what has it.
func (p *push) named(d digest.Digest) error {
	if want := p.to.Reference().Digest; want != "" && want != d {
		return invalid("what is pushed has the digest %s, so it can't be pushed as %s: use a tag", d, want)
	}
	return nil
}

// sendPart pushes what stands for some platforms.
func (p *push) sendPart(ctx context.Context, part *partial) error {
	tag := tagOf(p.to.Reference())
	if err := p.named(part.Digest); err != nil {
		return err
	}
	if part.body == nil {
		return p.sendStored(ctx, part.Descriptor, tag)
	}
	return p.send(ctx, part.Descriptor, part.body, tag)
}

func (p *push) send(ctx context.Context, d ocispec.Descriptor, body []byte, tag string) error {
	tell(p.progress, progressOf(d, Uploading, 0))
	if err := p.to.PushManifest(ctx, plain(d), body, tag); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	tell(p.progress, progressOf(d, Uploaded, d.Size))
	return nil
}
