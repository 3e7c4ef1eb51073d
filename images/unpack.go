package images

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/metadata"
)

// ChainID names a stack of layers, given as diff ids, bottom first: "" for
// none, the diff id for one, then the digest of the chain id below, a space and
// the diff id (OCI image spec, config.md).
func ChainID(diffIDs []digest.Digest) digest.Digest {
	var chain digest.Digest
	for i, id := range diffIDs {
		if i == 0 {
			chain = id
			continue
		}
		chain = digest.FromString(chain.String() + " " + id.String())
	}
	return chain
}

// Unpack makes snapshots of the layers of target and returns the chain id of
// the top one. progress, which may be nil, is called one at a time, and not
// after the return.
// NotFound if a blob is missing or nothing is for the platform.
func (s *Store) Unpack(ctx context.Context, scope metadata.Scope, target ocispec.Descriptor, o UnpackOptions, progress func(Progress)) (chain digest.Digest, err error) {
	c, err := s.choose(o.Platform, false)
	if err != nil {
		return "", err
	}
	err = s.leased(ctx, scope, func(scope metadata.Scope) error {
		image, err := resolve(ctx, s.DB.Blobs(scope), target, c)
		if err != nil {
			return err
		}
		chain, err = s.unpack(ctx, scope, image.chosen, o.Snapshotter, progress)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", target.Digest, err)
	}
	return chain, nil
}

// unpacker unpacks the layers of one manifest.
type unpacker struct {
	store    *Store
	scope    metadata.Scope
	blobs    *metadata.Blobs
	name     string // of the snapshotter
	into     *metadata.Snapshots
	layers   []ocispec.Descriptor
	diffIDs  []digest.Digest
	progress func(Progress)
}

// unpack makes the snapshots of a manifest and has its config keep the top one.
func (s *Store) unpack(ctx context.Context, scope metadata.Scope, m *manifest, snapshotter string, progress func(Progress)) (digest.Digest, error) {
	if KindOf(m.doc.Config.MediaType) != Config {
		return "", notAnImage(m)
	}
	into, name, err := s.snapshotter(scope, snapshotter)
	if err != nil {
		return "", err
	}
	u := &unpacker{store: s, scope: scope, blobs: s.DB.Blobs(scope), name: name, into: into, layers: m.doc.Layers, progress: progress}
	config, err := readConfig(ctx, u.blobs, m.doc.Config)
	if err != nil {
		return "", err
	}
	u.diffIDs = config.RootFS.DiffIDs
	if len(u.diffIDs) != len(u.layers) {
		return "", invalid("manifest %s has %d layers, its config %d", m.desc.Digest, len(u.layers), len(u.diffIDs))
	}
	for i, id := range u.diffIDs {
		if err := id.Validate(); err != nil {
			return "", invalid("config %s: diff id %q of layer %d: %v", m.doc.Config.Digest, id, i+1, err)
		}
	}
	start := time.Now()
	chain, err := u.all(ctx)
	if err != nil || chain == "" {
		return "", err
	}
	err = addLabels(ctx, u.blobs, m.doc.Config.Digest, map[string]string{labels.GCRefSnapshot + name: chain.String()})
	if err != nil {
		return "", err
	}
	s.log().Info("image unpacked", slog.String("namespace", scope.Namespace), slog.String("manifest", m.desc.Digest.String()),
		slog.String("snapshotter", name), slog.String("chain", chain.String()), slog.Duration("took", time.Since(start)))
	return chain, nil
}

// all unpacks what is missing, from the bottom, and returns the top chain id.
func (u *unpacker) all(ctx context.Context) (digest.Digest, error) {
	have, err := u.standing(ctx)
	if err != nil {
		return "", err
	}
	for i := range u.layers {
		layer := u.layers[i]
		if i < have {
			tell(u.progress, Progress{layer.Digest, Unpacked, layer.Size, layer.Size})
			continue
		}
		if err := u.layer(ctx, i); err != nil {
			return "", fmt.Errorf("layer %d (%s): %w", i+1, layer.Digest, err)
		}
	}
	return ChainID(u.diffIDs), nil
}

// standing tells how many layers are unpacked, and has the lease hold them.
func (u *unpacker) standing(ctx context.Context) (int, error) {
	for n := len(u.diffIDs); n > 0; n-- {
		chain := ChainID(u.diffIDs[:n]).String()
		if ok, err := u.stands(ctx, chain); err != nil {
			return 0, err
		} else if !ok {
			continue
		}
		held := &leases.Resource{Id: chain, Type: "snapshots/" + u.name}
		if err := u.store.DB.Leases(u.scope).AddResource(ctx, u.scope.Lease, held); err != nil {
			return 0, err
		}
		// It may have been collected before the lease held it.
		if ok, err := u.stands(ctx, chain); ok || err != nil {
			return n, err
		}
	}
	return 0, nil
}

func (u *unpacker) stands(ctx context.Context, chain string) (bool, error) {
	_, err := u.into.Stat(ctx, chain)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// layer makes the snapshot of layer i, or finds that another has.
func (u *unpacker) layer(ctx context.Context, i int) error {
	chain := ChainID(u.diffIDs[:i+1]).String()
	leave, err := u.store.layers.enter(ctx, u.scope.Namespace+"/"+u.name+"/"+chain)
	if err != nil {
		return err
	}
	defer leave()
	parent := ChainID(u.diffIDs[:i]).String()
	about := map[string]string{labels.SnapshotRef: chain, labels.SnapshotDiffID: u.diffIDs[i].String()}
	if parent != "" {
		about[labels.SnapshotParent] = parent
	}
	key := fmt.Sprintf("extract-%s %s", unique(), chain)
	mounts, err := u.into.Prepare(ctx, key, parent, about)
	if errdefs.IsAlreadyExists(err) {
		if ok, found := u.stands(ctx, chain); ok || found != nil {
			tell(u.progress, Progress{u.layers[i].Digest, Unpacked, u.layers[i].Size, u.layers[i].Size})
			return found
		}
	}
	if err != nil {
		return err
	}
	err = u.apply(ctx, i, mounts)
	if err == nil {
		err = u.into.Commit(ctx, chain, key, "", about)
	}
	if err == nil {
		return nil
	}
	if errdefs.IsAlreadyExists(err) { // another client has been faster
		err = nil
	}
	undo, cancel := undoContext(ctx)
	defer cancel()
	if removed := u.into.Remove(undo, key); !errdefs.IsNotFound(removed) {
		err = errors.Join(err, removed)
	}
	return err
}

// unique is the first part of the name of a snapshot that is being unpacked.
func unique() string {
	var random [3]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%d-%s", time.Now().Nanosecond(), base64.RawURLEncoding.EncodeToString(random[:]))
}

// apply lays layer i down and compares what it was with the config.
func (u *unpacker) apply(ctx context.Context, i int, mounts []mount.Mount) (err error) {
	layer := u.layers[i]
	blob, err := u.blobs.Open(ctx, layer.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	r := &counter{r: io.NewSectionReader(blob, 0, blob.Size())}
	r.tell = func(n int64) { tell(u.progress, Progress{layer.Digest, Unpacking, n, layer.Size}) }
	result, err := diff.Apply(ctx, r, layer.MediaType, mounts, diff.Options{})
	if err != nil {
		return err
	}
	if result.DiffID != u.diffIDs[i] {
		return invalid("uncompressed it is %s, the config says %s: the image is damaged, build or fetch it again", result.DiffID, u.diffIDs[i])
	}
	if result.DiffID != layer.Digest {
		err := addLabels(ctx, u.blobs, layer.Digest, map[string]string{labels.Uncompressed: result.DiffID.String()})
		if err != nil {
			return err
		}
	}
	tell(u.progress, Progress{layer.Digest, Unpacked, layer.Size, layer.Size})
	return nil
}

// counter tells how much was read.
type counter struct {
	r    io.Reader
	n    int64
	tell func(n int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); n > 0 {
		c.tell(c.n)
	}
	return n, err
}
