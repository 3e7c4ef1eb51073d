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
	"github.com/moby/sys/userns"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/counted"
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
	c, err := s.choose(false, o.Platform)
	if err != nil {
		return "", err
	}
	err = s.leased(ctx, scope, func(scope metadata.Scope) error {
		image, err := resolve(ctx, s.DB.Blobs(scope), target, c)
		if err != nil {
			return err
		}
		u := unpacking{scope: scope, snapshotter: o.Snapshotter, progress: oneByOne(progress)}
		chain, err = s.unpack(ctx, u, image.chosen[0])
		return err
	})
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", target.Digest, err)
	}
	return chain, nil
}

// unpacking says how a manifest is unpacked.
type unpacking struct {
	scope       metadata.Scope
	snapshotter string         // empty: the store's
	progress    func(Progress) // for many callers at once
	// arrivals are blobs that are being fetched; those that are not among them are
	// there.
	arrivals map[digest.Digest]*arrival
}

// unpacker unpacks the layers of one manifest.
type unpacker struct {
	unpacking
	store   *Store
	blobs   *metadata.Blobs
	name    string // of the snapshotter
	into    *metadata.Snapshots
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
}

// unpack makes the snapshots of a manifest and has its config keep the top one.
func (s *Store) unpack(ctx context.Context, how unpacking, m *manifest) (digest.Digest, error) {
	if KindOf(m.doc.Config.MediaType) != Config {
		return "", notAnImage(m)
	}
	into, name, err := s.snapshotter(how.scope, how.snapshotter)
	if err != nil {
		return "", err
	}
	u := &unpacker{unpacking: how, store: s, blobs: s.DB.Blobs(how.scope), name: name, into: into, layers: m.doc.Layers}
	if a := how.arrivals[m.doc.Config.Digest]; a != nil {
		if err := a.wait(ctx); err != nil {
			return "", err
		}
	}
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
	s.log().Info("image unpacked", slog.String("namespace", u.scope.Namespace), slog.String("manifest", m.desc.Digest.String()),
		slog.String("snapshotter", name), slog.String("chain", chain.String()), slog.Duration("took", time.Since(start)))
	return chain, nil
}

// all unpacks what is missing, from the bottom, and returns the top chain id.
func (u *unpacker) all(ctx context.Context) (digest.Digest, error) {
	have, err := u.standing(ctx)
	if err != nil {
		return "", err
	}
	for _, layer := range u.layers[:have] {
		tell(u.progress, progressOf(layer, Unpacked, layer.Size))
	}
	if u.into.Rebases() && !userns.RunningInUserNS() && len(u.layers)-have > 1 {
		err = u.together(ctx, have)
	} else {
		for i := have; i < len(u.layers) && err == nil; i++ {
			err = u.atLayer(i, u.layer(ctx, i))
		}
	}
	if err != nil {
		return "", err
	}
	return ChainID(u.diffIDs), nil
}

// atLayer says which layer an error is about.
func (u *unpacker) atLayer(i int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("layer %d (%s): %w", i+1, u.layers[i].Digest, err)
}

// chain gives the name of the first n layers, "" for none.
func (u *unpacker) chain(n int) string { return ChainID(u.diffIDs[:n]).String() }

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

// layer makes the snapshot of layer i upon the one below, or finds that another has.
func (u *unpacker) layer(ctx context.Context, i int) error {
	chain, parent := u.chain(i+1), u.chain(i)
	leave, err := u.store.layers.enter(ctx, u.flight(chain))
	if err != nil {
		return err
	}
	defer leave()
	key, mounts, err := u.prepare(ctx, i, parent)
	if err != nil || key == "" {
		return err
	}
	if _, err = u.apply(ctx, i, mounts, nil); err == nil {
		err = u.into.Commit(ctx, chain, key, "", u.about(i))
	}
	return u.settle(ctx, i, key, err)
}

// flight names the work on a chain.
func (u *unpacker) flight(chain string) string { return u.scope.Namespace + "/" + u.name + "/" + chain }

// about gives the labels of the snapshot of layer i.
func (u *unpacker) about(i int) map[string]string {
	about := map[string]string{labels.SnapshotRef: u.chain(i + 1), labels.SnapshotDiffID: u.diffIDs[i].String()}
	if i > 0 {
		about[labels.SnapshotParent] = u.chain(i)
	}
	return about
}

// prepare makes the snapshot that layer i is laid down in. No key: the layer stands.
func (u *unpacker) prepare(ctx context.Context, i int, parent string) (key string, mounts []mount.Mount, err error) {
	chain := u.chain(i + 1)
	key = fmt.Sprintf("extract-%s %s", unique(), chain)
	mounts, err = u.into.Prepare(ctx, key, parent, u.about(i))
	if errdefs.IsAlreadyExists(err) {
		if ok, found := u.stands(ctx, chain); ok || found != nil {
			tell(u.progress, progressOf(u.layers[i], Unpacked, u.layers[i].Size))
			return "", nil, found
		}
	}
	return key, mounts, err
}

// settle ends the work on a layer: what could not be committed is removed.
func (u *unpacker) settle(ctx context.Context, i int, key string, err error) error {
	if err == nil {
		tell(u.progress, progressOf(u.layers[i], Unpacked, u.layers[i].Size))
		return nil
	}
	if errdefs.IsAlreadyExists(err) { // another client has been faster
		err = nil
	}
	return errors.Join(err, u.discard(ctx, key))
}

// discard removes a snapshot that is not to be a layer.
func (u *unpacker) discard(ctx context.Context, key string) error {
	undo, cancel := undoContext(ctx)
	defer cancel()
	if err := u.into.Remove(undo, key); !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// unique is the first part of the name of a snapshot that is being unpacked.
func unique() string {
	var random [3]byte
	rand.Read(random[:]) // never fails
	return fmt.Sprintf("%d-%s", time.Now().Nanosecond(), base64.RawURLEncoding.EncodeToString(random[:]))
}

// apply lays layer i down and compares what it was with the config. lower is that of
// diff.Options.
func (u *unpacker) apply(ctx context.Context, i int, mounts []mount.Mount, lower func() ([]string, error)) (result diff.Result, err error) {
	layer := u.layers[i]
	from, err := u.open(ctx, layer.Digest)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	r := &counted.Reader{R: from, Tell: func(n int64) { tell(u.progress, progressOf(layer, Unpacking, n)) }}
	o := u.store.Layers
	o.Lower, o.SyncFS = lower, false
	result, err = diff.Apply(ctx, r, layer.MediaType, mounts, o)
	if err != nil {
		return result, err
	}
	if result.DiffID != u.diffIDs[i] {
		return result, invalid("uncompressed it is %s, the config says %s: the image is damaged, build or fetch it again", result.DiffID, u.diffIDs[i])
	}
	// All of it has been read, so it has come; now its digest has to be the right one.
	if a := u.arrivals[layer.Digest]; a != nil {
		if err := a.wait(ctx); err != nil {
			return result, err
		}
	}
	if result.DiffID != layer.Digest {
		return result, addLabels(ctx, u.blobs, layer.Digest, map[string]string{labels.Uncompressed: result.DiffID.String()})
	}
	return result, nil
}

// open opens a layer to be read from its start, while it comes.
func (u *unpacker) open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	if a := u.arrivals[d]; a != nil {
		return a.follow(ctx), nil
	}
	blob, err := u.blobs.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(blob, 0, blob.Size()), blob}, nil
}
