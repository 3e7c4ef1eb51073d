package images

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/metadata"
)

// maker unpacks layers again that are damaged or gone.
type maker struct {
	store *Store
	// known are the variants of each namespace, by the name of a snapshot and
	// with how many of their layers it stands for.
	known map[string]map[string]layerOf
}

type layerOf struct {
	variant *Variant
	index   int
}

// layer makes a committed snapshot anew, and those below it that are not whole.
// NotFound: it is not the layer of any image whose blobs are there.
func (m *maker) layer(ctx context.Context, ns, snapshotter, name string) error {
	if m.known[ns] == nil {
		if err := m.learn(ctx, ns); err != nil {
			return err
		}
	}
	l, ok := m.known[ns][name]
	if !ok {
		return fmt.Errorf("no image has it as a layer: %w", errdefs.ErrNotFound)
	}
	return m.store.leased(ctx, metadata.Scope{Namespace: ns}, func(scope metadata.Scope) error {
		return m.store.remake(ctx, scope, snapshotter, l.variant, l.index)
	})
}

// learn looks for all manifests of a namespace.
func (m *maker) learn(ctx context.Context, ns string) error {
	if m.known == nil {
		m.known = map[string]map[string]layerOf{}
	}
	m.known[ns] = map[string]layerOf{}
	scope := metadata.Scope{Namespace: ns}
	l := &looker{store: m.store, blobs: m.store.DB.Blobs(scope), scope: scope, state: &State{}}
	found, err := m.store.DB.Blobs(scope).List(ctx, fmt.Sprintf("labels.%q", labels.GCRefConfig))
	if err != nil {
		return err
	}
	for _, row := range found {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(row.Digest), Size: row.Size}
		l.read = reading{} // it is an image of its own
		if err := m.tolerate(ctx, l.visit(ctx, d, 0)); err != nil {
			return err
		}
	}
	rows, err := m.store.DB.Images(scope).List(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		st, err := m.store.State(ctx, ns, row)
		if err != nil {
			return err
		}
		l.state.Variants = append(l.state.Variants, st.Variants...)
	}
	for i := range l.state.Variants {
		v := &l.state.Variants[i]
		chains, err := v.chains()
		if err != nil {
			continue // no image
		}
		for n, chain := range chains {
			m.known[ns][chain] = layerOf{v, n}
		}
	}
	return nil
}

// tolerate drops the errors that are about one image alone.
func (m *maker) tolerate(ctx context.Context, err error) error {
	if ctx.Err() == nil && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)) {
		return nil
	}
	return err
}

// remake unpacks those of the layers up to last again that are not whole.
func (s *Store) remake(ctx context.Context, scope metadata.Scope, snapshotter string, v *Variant, last int) error {
	sn, err := s.DB.Snapshotter(scope, snapshotter)
	if err != nil {
		return err
	}
	chains, err := v.chains()
	if err != nil {
		return err
	}
	for i := range chains[:last+1] {
		whole, err := sn.Whole(ctx, chains[i])
		if err == nil && whole {
			continue
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err := s.unpackAgain(ctx, scope, sn, v, i, func(key string, _ []mount.Mount) error {
			if err == nil {
				return sn.Replace(ctx, chains[i], key)
			}
			about := map[string]string{labels.SnapshotRef: chains[i], labels.SnapshotDiffID: v.config.RootFS.DiffIDs[i].String()}
			if i > 0 {
				about[labels.SnapshotParent] = chains[i-1]
			}
			return sn.Commit(ctx, chains[i], key, "", about)
		}); err != nil {
			return fmt.Errorf("layer %d (%s): %w", i+1, v.doc.Layers[i].Digest, err)
		}
	}
	return nil
}

// unpackAgain lays layer i down in a snapshot of its own, upon the layer below,
// and has it used; what is left of it then goes.
func (s *Store) unpackAgain(ctx context.Context, scope metadata.Scope, sn *metadata.Snapshots, v *Variant, i int, use func(key string, mounts []mount.Mount) error) (err error) {
	chains, err := v.chains()
	if err != nil {
		return err
	}
	parent := ""
	if i > 0 {
		parent = chains[i-1]
	}
	key := "again-" + rand.Text() + " " + chains[i]
	about := map[string]string{labels.SnapshotDiffID: v.config.RootFS.DiffIDs[i].String()}
	mounts, err := sn.Prepare(ctx, key, parent, about)
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := undoContext(ctx)
		defer cancel()
		if removed := sn.Remove(undo, key); !errdefs.IsNotFound(removed) {
			err = errors.Join(err, removed)
		}
	}()
	layer := v.doc.Layers[i]
	blob, err := s.DB.Blobs(scope).Open(ctx, layer.Digest)
	if err != nil {
		return err
	}
	result, err := diff.Apply(ctx, io.NewSectionReader(blob, 0, blob.Size()), layer.MediaType, mounts, s.Layers)
	if err = errors.Join(err, blob.Close()); err != nil {
		return err
	}
	if want := v.config.RootFS.DiffIDs[i]; result.DiffID != want {
		return invalid("uncompressed it is %s, the config says %s: the image is damaged, build or fetch it again", result.DiffID, want)
	}
	return use(key, mounts)
}
