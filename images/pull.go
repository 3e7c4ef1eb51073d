package images

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// PullOptions say what to pull. The zero value pulls and unpacks what is for the
// store's platform, under the name of the reference.
type PullOptions struct {
	Name         string            // of the image; empty: the reference
	Labels       map[string]string // for the image, beside those that it has
	Platforms    []string          // os/arch[/variant]; none: the store's
	AllPlatforms bool              // the content of every platform
	// Documents keeps the manifests and configs of the platforms too that are not
	// wanted.
	Documents bool
	NoUnpack  bool            // leave the image packed
	Unpack    []UnpackOptions // what to unpack, and where to; none: the wanted platforms, by the store's snapshotter
}

// Pull fetches the image that a registry has for a reference, unpacks it while it
// comes, and names it once it is whole. progress, which may be nil, is called one at
// a time, and not after the return.
//
// After an error no image is named. What came is kept for a day if it was the way to
// the registry that failed, so that the next pull goes on from there; else it goes at
// the next collection. NotFound: the registry does not have it, or nothing for the
// platform; InvalidArgument: the image is damaged; DataLoss: the registry sends
// something else; Unauthorized, Unavailable.
func (s *Store) Pull(ctx context.Context, scope metadata.Scope, from Registry, o PullOptions, progress func(Progress)) (made Imported, err error) {
	name := o.Name
	if name == "" {
		name = from.Reference().String()
	}
	if o.NoUnpack && len(o.Unpack) > 0 {
		return Imported{}, invalid("pull %q: it can't be both unpacked and left packed", name)
	}
	p := &pull{store: s, name: name, o: o, from: from, progress: oneByOne(progress)}
	start := time.Now()
	err = s.pulling(ctx, scope, name, func(scope metadata.Scope) error {
		made, err = p.run(ctx, scope)
		return err
	})
	if err != nil {
		return Imported{}, fmt.Errorf("pull %q: %w", name, err)
	}
	s.log().Info("image pulled", slog.String("namespace", scope.Namespace), slog.String("image", name),
		slog.String("digest", made.Target.Digest.String()), slog.Duration("took", time.Since(start)))
	return made, nil
}

// pulling calls do with a scope that has a lease: the given one, or one that keeps
// what came from a pull that was cut off.
func (s *Store) pulling(ctx context.Context, scope metadata.Scope, name string, do func(metadata.Scope) error) error {
	if scope.Lease != "" {
		return do(scope)
	}
	leases := s.DB.Leases(scope)
	mark := map[string]string{labels.Pull: name, labels.GCExpire: time.Now().Add(leaseTime).UTC().Format(time.RFC3339)}
	if len(labels.Pull)+len(name) > labels.MaxSize {
		mark[labels.Pull] = "true"
	}
	// Before it is there, so that a pull of the same name that ends leaves it alone.
	id := "pull-" + rand.Text()
	s.pulls.add(id)
	defer s.pulls.drop(id)
	lease, err := leases.Create(ctx, id, mark)
	if err != nil {
		return err
	}
	scope.Lease = lease.Id
	err = do(scope)
	undo, cancel := undoContext(ctx)
	defer cancel()
	if err != nil && keepable(err) {
		came, listed := leases.ListResources(undo, lease.Id)
		if len(came) > 0 || listed != nil && !errdefs.IsNotFound(listed) {
			return errors.Join(err, listed)
		}
	}
	drop := []string{lease.Id}
	if err == nil {
		// What kept the parts that came with earlier attempts has done its work.
		earlier, listed := leases.List(undo, fmt.Sprintf("labels.%q==%q", labels.Pull, mark[labels.Pull]))
		err = listed
		for _, l := range earlier {
			if l.Id != lease.Id && !s.pulls.has(l.Id) {
				drop = append(drop, l.Id)
			}
		}
	}
	for _, id := range drop {
		if dropped := leases.Delete(undo, id); !errdefs.IsNotFound(dropped) {
			err = errors.Join(err, dropped)
		}
	}
	return err
}

// pull is one pull.
type pull struct {
	store    *Store
	name     string
	o        PullOptions
	from     Registry
	progress func(Progress)

	scope    metadata.Scope
	fetcher  *fetcher
	image    *image
	arrivals map[digest.Digest]*arrival
	chains   []digest.Digest // of what was unpacked
}

func (p *pull) run(ctx context.Context, scope metadata.Scope) (made Imported, err error) {
	s := p.store
	p.scope, p.fetcher = scope, s.fetcher(scope, p.from, p.progress)
	target, body, err := p.from.Get(ctx)
	if err != nil {
		return made, err
	}
	if s.Verify != nil {
		if err := s.Verify(ctx, p.name, target); err != nil {
			return made, err
		}
	}
	if err := p.fetcher.put(ctx, target, body); err != nil {
		return made, err
	}
	w, targets, err := p.choose(ctx, target)
	if err != nil {
		return made, err
	}
	p.image = w.image
	if err := p.fetch(ctx, targets); err != nil {
		return made, err
	}
	if err := w.whole(ctx); err != nil {
		return made, err
	}
	if err := label(ctx, p.fetcher.blobs, p.image); err != nil {
		return made, err
	}
	made = Imported{Name: p.name, Target: target}
	if len(p.chains) > 0 {
		made.ChainID = p.chains[0]
	}
	return made, s.name(ctx, scope, made, p.o.Labels)
}

// unpackTarget is something to unpack.
type unpackTarget struct {
	manifest    *manifest
	snapshotter string
}

// choose reads the documents of an image and decides what of it is fetched and
// unpacked.
func (p *pull) choose(ctx context.Context, target ocispec.Descriptor) (*walker, []unpackTarget, error) {
	wanted := slices.Clone(p.o.Platforms)
	if len(wanted) == 0 && !p.o.AllPlatforms {
		wanted = append(wanted, "")
	}
	first := len(wanted) // of those to unpack
	switch {
	case p.o.NoUnpack:
	case len(p.o.Unpack) > 0:
		for _, u := range p.o.Unpack {
			if _, _, err := p.store.snapshotter(p.scope, u.Snapshotter); err != nil {
				return nil, nil, err
			}
			wanted = append(wanted, u.Platform)
		}
	default:
		if _, _, err := p.store.snapshotter(p.scope, ""); err != nil {
			return nil, nil, err
		}
		first = 0
		if len(wanted) == 0 {
			wanted = append(wanted, "")
		}
	}
	c, err := p.store.choose(p.o.AllPlatforms, wanted...)
	if err != nil {
		return nil, nil, err
	}
	c.documents, c.artifact = p.o.Documents, p.o.NoUnpack
	w := &walker{blobs: p.fetcher.blobs, choice: c, image: &image{target: target}, fetch: p.fetcher.document}
	if err := w.choose(ctx); err != nil {
		return nil, nil, err
	}
	var targets []unpackTarget
	if p.o.NoUnpack {
		return w, nil, nil
	}
	for i, m := range w.image.chosen[first:] {
		if m == nil {
			return nil, nil, nothingToUnpack(c.wants[first+i].text)
		}
		t := unpackTarget{manifest: m}
		if len(p.o.Unpack) > 0 {
			t.snapshotter = p.o.Unpack[i].Snapshotter
		}
		targets = append(targets, t)
	}
	return w, targets, nil
}

// fetch fetches configs and layers, and unpacks what is to be.
func (p *pull) fetch(ctx context.Context, targets []unpackTarget) (err error) {
	var order []ocispec.Descriptor
	p.arrivals = map[digest.Digest]*arrival{}
	expect := func(m *manifest, parts []ocispec.Descriptor) {
		for _, d := range parts {
			if p.arrivals[d.Digest] == nil {
				p.arrivals[d.Digest] = newArrival()
				order = append(order, d)
				t := progressOf(d, Waiting, 0)
				t.Parent = m.desc.Digest
				tell(p.progress, t)
			}
		}
	}
	for _, m := range p.image.manifests {
		expect(m, m.parts())
	}
	for _, m := range p.image.documents {
		expect(m, m.parts()[:1])
	}
	defer func() {
		for _, a := range p.arrivals {
			err = errors.Join(err, a.close())
		}
	}()
	all, ctx := errgroup.WithContext(ctx)
	p.chains = make([]digest.Digest, len(targets))
	for i, t := range targets {
		all.Go(func() (err error) {
			u := unpacking{scope: p.scope, snapshotter: t.snapshotter, progress: p.progress, arrivals: p.arrivals}
			p.chains[i], err = p.store.unpack(ctx, u, t.manifest)
			return err
		})
	}
	all.Go(func() error {
		blobs, ctx := errgroup.WithContext(ctx)
		blobs.SetLimit(maxFetches)
		for _, d := range order {
			blobs.Go(func() error { return p.one(ctx, d) })
		}
		return blobs.Wait()
	})
	return all.Wait()
}

func (p *pull) one(ctx context.Context, d ocispec.Descriptor) error {
	a := p.arrivals[d.Digest]
	if err := context.Cause(ctx); err != nil {
		a.end(nil, err)
		return err
	}
	return p.fetcher.blob(ctx, d, a)
}
