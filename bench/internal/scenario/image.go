package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/bench/internal/ociimage"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

func (r *Run) importImage(ctx context.Context, img *ociimage.Image) error {
	f, err := os.Open(img.Tar)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := r.D.Client.Import(ctx, f)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if len(got) != 1 || got[0].Target.Digest != img.Manifest.Digest {
		return fmt.Errorf("import gave %d images", len(got))
	}
	return nil
}

func (r *Run) unpackImage(ctx context.Context, img *ociimage.Image) error {
	i, err := r.D.Client.GetImage(ctx, img.Ref)
	if err != nil {
		return fmt.Errorf("get image: %w", err)
	}
	if err := i.Unpack(ctx, r.D.Config.Snapshotter); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// dropImage deletes an image with everything it holds and checks that its
// layers are gone.
func (r *Run) dropImage(ctx context.Context, ref string, img *ociimage.Image) error {
	if err := r.D.Client.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
		return fmt.Errorf("delete image: %w", err)
	}
	end := time.Now().Add(20 * time.Second)
	for {
		_, snapErr := r.snapshotter().Stat(ctx, img.ChainID.String())
		_, blobErr := r.D.Client.ContentStore().Info(ctx, img.Layers[0].Digest)
		if errdefs.IsNotFound(snapErr) && errdefs.IsNotFound(blobErr) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("image's layers survive a synchronous delete (snapshot: %v, blob: %v)", snapErr, blobErr)
		}
		r.note("a synchronous image delete returned before its layers were gone")
		time.Sleep(100 * time.Millisecond)
	}
}

// verifyRootfs compares an unpacked image with what it must look like.
func (r *Run) verifyRootfs(ctx context.Context, img *ociimage.Image) error {
	key := r.id("verify")
	mounts, err := r.snapshotter().View(ctx, key, img.ChainID.String(), rooted())
	if err != nil {
		return fmt.Errorf("view: %w", err)
	}
	defer r.snapshotter().Remove(context.WithoutCancel(ctx), key)
	dir := filepath.Join(r.D.Dir, "verify")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount view: %w", err)
	}
	defer mount.UnmountAll(dir, 0)
	got, err := ociimage.ReadTree(dir)
	if err != nil {
		return err
	}
	bad, examples := img.Expected.Diff(got)
	if bad > 0 {
		r.note("WRONG root file system after unpack: %d of %d entries differ (%s)", bad, len(img.Expected.Entries), examples)
	} else {
		r.note("root file system after unpack verified: %d entries, contents, modes, owners, links", len(got.Entries))
	}
	return nil
}

// largeImage generates the large image once per compression.
func (e *Env) largeImage(c ociimage.Compression) (*ociimage.Image, error) {
	if img := e.large[c]; img != nil {
		return img, nil
	}
	dir := filepath.Join(e.WorkDir, "large-"+string(c))
	img, err := ociimage.BuildLarge(dir, "bench.invalid/large:"+string(c), e.P.Large, c)
	if err != nil {
		return nil, err
	}
	if e.large == nil {
		e.large = map[ociimage.Compression]*ociimage.Image{}
	}
	e.large[c] = img
	return img, nil
}

func prepareLarge(_ context.Context, e *Env) error {
	for _, c := range []ociimage.Compression{ociimage.Gzip, ociimage.Zstd} {
		if _, err := e.largeImage(c); err != nil {
			return err
		}
	}
	return nil
}
