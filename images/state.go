package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	imagesapi "github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// How much of a variant of an image is there.
const (
	Whole   = "whole"
	Partial = "partial" // some of it is, or all that there is of the image should be
	Absent  = "absent"  // it was not fetched
)

// State tells how much of an image is there.
type State struct {
	Namespace, Name string
	Target          ocispec.Descriptor
	Variants        []Variant
	Problem         string // what is wrong with the image; empty: nothing
}

// Variant is an image for one platform.
type Variant struct {
	Platform string // empty: not known
	Manifest ocispec.Descriptor
	State    string // Whole...
	Missing  []ocispec.Descriptor
	Unpacked []string // snapshotters that it is unpacked for
	Broken   []string // snapshotters that it should be unpacked for, and is not in full
	Size     int64    // bytes of what is there of its blobs

	doc    ocispec.Manifest
	config *ocispec.Image // nil: it is not there, or is no image's
	has    []digest.Digest
}

// lookTries bounds how often an image is looked at that others change meanwhile.
const lookTries = 5

// Look tells how much of the image of that name is there, while others may remove
// it or have its name point elsewhere. NotFound: there is none, or no more.
func (s *Store) Look(ctx context.Context, ns, name string) (State, error) {
	rows := s.DB.Images(metadata.Scope{Namespace: ns})
	row, err := rows.Get(ctx, name)
	for range lookTries {
		if err != nil {
			return State{}, err
		}
		st, failed := s.State(ctx, ns, row)
		if failed == nil && st.Problem == "" {
			return st, nil
		}
		before := row.GetTarget().GetDigest()
		if row, err = rows.Get(ctx, name); err == nil && row.GetTarget().GetDigest() == before {
			return st, failed
		}
	}
	return State{}, fmt.Errorf("image %q changes all the time: %w", name, errdefs.ErrUnavailable)
}

// State tells how much of an image is there. What a client did not fetch, as the
// variants for other platforms, is no problem.
func (s *Store) State(ctx context.Context, ns string, row *imagesapi.Image) (State, error) {
	t := row.GetTarget()
	st := State{Namespace: ns, Name: row.GetName(), Target: ocispec.Descriptor{
		MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize(), Annotations: t.GetAnnotations(),
	}}
	l := &looker{store: s, blobs: s.DB.Blobs(metadata.Scope{Namespace: ns}), scope: metadata.Scope{Namespace: ns}, state: &st}
	if err := l.visit(ctx, st.Target, 0); err != nil {
		if ctx.Err() != nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			return st, err
		}
		st.Problem = err.Error()
		return st, nil
	}
	l.judge()
	return st, nil
}

// looker looks at one image.
type looker struct {
	store *Store
	blobs *metadata.Blobs
	scope metadata.Scope
	state *State
	read  reading
}

// visit looks at a descriptor and what is below it. Errors are of the target and
// of indexes; a manifest that is missing is one that was not fetched.
func (l *looker) visit(ctx context.Context, d ocispec.Descriptor, depth int) error {
	if depth > maxDepth {
		return invalid("index %s: more than %d indexes in each other", d.Digest, maxDepth)
	}
	whole, err := l.blobs.Whole(ctx, d)
	switch kind := KindOf(d.MediaType); {
	case err != nil:
		return err
	case !whole && depth == 0:
		return fmt.Errorf("%s %s is missing: %w", kindText(kind), d.Digest, errdefs.ErrNotFound)
	case kind == Index && whole:
		var doc ocispec.Index
		if err := l.document(ctx, "index", d, &doc); err != nil {
			return err
		}
		for _, child := range doc.Manifests {
			if k := KindOf(child.MediaType); k == Index || k == Manifest {
				if err := l.visit(ctx, child, depth+1); err != nil {
					return err
				}
			}
		}
	case kind == Manifest:
		return l.manifest(ctx, d, whole)
	}
	return nil // an artifact is what it is
}

func kindText(k Kind) string {
	switch k {
	case Index:
		return "index"
	case Manifest:
		return "manifest"
	}
	return "blob"
}

// manifest looks at a variant.
func (l *looker) manifest(ctx context.Context, d ocispec.Descriptor, whole bool) error {
	v := Variant{Manifest: d, State: Absent}
	if d.Platform != nil {
		v.Platform = platforms.Format(platforms.Normalize(*d.Platform))
	}
	if !whole {
		v.Missing = append(v.Missing, d)
		l.state.Variants = append(l.state.Variants, v)
		return nil
	}
	if err := l.document(ctx, "manifest", d, &v.doc); err != nil {
		return err
	}
	v.Size, v.has = d.Size, []digest.Digest{d.Digest}
	for i, part := range partsOf(&v.doc) {
		there, err := l.blobs.Whole(ctx, part)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			return err
		}
		switch {
		case there:
			v.Size += part.Size
			v.has = append(v.has, part.Digest)
		case i == 0 || !foreign(part.MediaType):
			v.Missing = append(v.Missing, part)
		}
		if i == 0 && there && KindOf(part.MediaType) == Config {
			if err := l.config(ctx, &v); err != nil {
				return err
			}
		}
	}
	v.State = Whole
	if len(v.Missing) > 0 {
		v.State = Partial
	}
	l.state.Variants = append(l.state.Variants, v)
	return nil
}

// config reads what the config says of the platform and of the layers, and looks
// which of the snapshots are there that its labels name.
func (l *looker) config(ctx context.Context, v *Variant) error {
	config := &ocispec.Image{}
	if err := l.document(ctx, "config", v.doc.Config, config); err != nil {
		return err
	}
	if config.RootFS.Type != "" || len(config.RootFS.DiffIDs) > 0 {
		v.config = config
	}
	if v.Platform == "" && config.OS != "" {
		v.Platform = platforms.Format(platforms.Normalize(config.Platform))
	}
	row, err := l.blobs.Info(ctx, v.doc.Config.Digest)
	if err != nil {
		return err
	}
	for key, chain := range row.Labels {
		name, ok := strings.CutPrefix(key, labels.GCRefSnapshot)
		name, _, _ = strings.Cut(name, "/")
		if !ok || slices.Contains(v.Unpacked, name) || slices.Contains(v.Broken, name) {
			continue
		}
		sn, err := l.store.DB.Snapshotter(l.scope, name)
		if err != nil {
			continue // one that is not there now
		}
		whole, err := standing(ctx, sn, chain)
		if err != nil {
			return err
		}
		if whole {
			v.Unpacked = append(v.Unpacked, name)
		} else {
			v.Broken = append(v.Broken, name)
		}
	}
	slices.Sort(v.Unpacked)
	slices.Sort(v.Broken)
	return nil
}

// document reads a document of the image.
func (l *looker) document(ctx context.Context, what string, d ocispec.Descriptor, into any) error {
	data, err := l.read.document(ctx, l.blobs, what, d)
	if err != nil {
		return err
	}
	return decode(what, d, data, into)
}

// standing tells whether a snapshot and all below it are there.
func standing(ctx context.Context, sn *metadata.Snapshots, name string) (bool, error) {
	for range maxLayers {
		if name == "" {
			return true, nil
		}
		info, err := sn.Stat(ctx, name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if whole, err := sn.Whole(ctx, name); err != nil || !whole {
			return false, err
		}
		name = info.Parent
	}
	return false, fmt.Errorf("snapshot %q has more than %d below it: %w", name, maxLayers, errdefs.ErrDataLoss)
}

// maxLayers bounds a chain of snapshots.
const maxLayers = 4096

// judge decides which variants were never meant to be there, and says what is
// wrong with the image.
func (l *looker) judge() {
	st := l.state
	shared := map[digest.Digest]bool{} // of variants that are whole
	for _, v := range st.Variants {
		if v.State == Whole {
			for _, d := range v.has {
				shared[d] = true
			}
		}
	}
	any := len(shared) > 0
	var problems []string
	for i := range st.Variants {
		v := &st.Variants[i]
		if v.State == Partial && any && !v.wanted(shared) {
			v.State = Absent // manifests and configs may come along without layers
		}
		if v.State == Partial {
			problems = append(problems, v.text())
		}
		for _, name := range v.Broken {
			problems = append(problems, fmt.Sprintf("the layers that snapshotter %s had of %s are gone", name, cmp.Or(v.Platform, v.Manifest.Digest.String())))
		}
	}
	if !any && len(problems) == 0 && len(st.Variants) > 0 {
		problems = append(problems, "it is there for no platform")
	}
	st.Problem = strings.Join(problems, "; ")
}

// wanted tells whether a variant that is not whole was to be.
func (v *Variant) wanted(shared map[digest.Digest]bool) bool {
	if len(v.Unpacked)+len(v.Broken) > 0 {
		return true
	}
	return slices.ContainsFunc(v.doc.Layers, func(d ocispec.Descriptor) bool {
		return slices.Contains(v.has, d.Digest) && !shared[d.Digest]
	})
}

func (v *Variant) text() string {
	first := v.Missing[0]
	text := fmt.Sprintf("of %s %s %s is missing", cmp.Or(v.Platform, v.Manifest.Digest.String()), kindOfPart(first), first.Digest)
	if more := len(v.Missing) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

func kindOfPart(d ocispec.Descriptor) string {
	switch KindOf(d.MediaType) {
	case Config:
		return "config"
	case Layer:
		return "layer"
	}
	return kindText(KindOf(d.MediaType))
}

// chains gives the names of the snapshots of a variant, bottom first.
func (v *Variant) chains() ([]string, error) {
	if v.config == nil {
		return nil, errors.New("its config is missing")
	}
	ids := v.config.RootFS.DiffIDs
	if len(ids) != len(v.doc.Layers) {
		return nil, invalid("manifest %s has %d layers, its config %d", v.Manifest.Digest, len(v.doc.Layers), len(ids))
	}
	all := make([]string, len(ids))
	for i := range ids {
		if err := ids[i].Validate(); err != nil {
			return nil, invalid("config of manifest %s: diff id %q: %v", v.Manifest.Digest, ids[i], err)
		}
		all[i] = ChainID(ids[:i+1]).String()
	}
	return all, nil
}
