package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	imageversion "github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/diff/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/labels"
)

// CommitOptions say what image a container's changes become. Name is required.
type CommitOptions struct {
	Name      string // of the image, in short or in full
	Author    string
	Message   string
	MediaType string    // of the new layer; default: an OCI layer with gzip
	Epoch     time.Time // not zero: the image's time, and the latest of a file in the layer
	// LeaveRunning leaves a container that runs alone. It is paused otherwise, for as
	// long as its files are read.
	LeaveRunning bool
	// Change changes what the image says of containers made from it; nil: nothing.
	Change func(*imagespec.ImageConfig) error
}

// Commit makes an image of a container: of the layers of the image that it was made
// from, and one with what is different in the container. Volumes are not part of it.
// The image is unpacked, and has its name at last, once it is whole; an image that
// had the name loses it. Call it under a lease.
//
// FailedPrecondition: the container has no snapshot, or its image is gone or is
// another one by now.
func (c *Client) Commit(ctx context.Context, id string, o CommitOptions) (*images.Image, error) {
	name, err := imageName(o.Name)
	if err != nil {
		return nil, err
	}
	container, err := c.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	record := container.Record
	if record.GetSnapshotKey() == "" {
		return nil, fmt.Errorf("container %q has no snapshot, so nothing of it can become an image: %w", id, errdefs.ErrFailedPrecondition)
	}
	base, err := c.baseOf(ctx, record)
	if err != nil {
		return nil, err
	}
	at := o.Epoch
	if at.IsZero() {
		at = time.Now().UTC()
	}
	config, err := changed(base, o.Change)
	if err != nil {
		return nil, err
	}
	layer, diffID, err := c.layerOf(ctx, container, base.ChainID.String(), o)
	if err != nil {
		return nil, err
	}
	history := imagespec.History{Created: &at, CreatedBy: commandOf(container), Author: o.Author, Comment: o.Message}
	base.Image.Created, base.Image.Author = &at, o.Author
	base.Image.History = append(base.Image.History, history)
	base.Image.RootFS = imagespec.RootFS{Type: "layers", DiffIDs: append(slices.Clone(base.Image.RootFS.DiffIDs), diffID)}
	chain := identity.ChainID(slices.Clone(base.Image.RootFS.DiffIDs)).String()
	if err := c.unpackTop(ctx, record.GetSnapshotter(), base.ChainID.String(), chain, layer, diffID); err != nil {
		return nil, err
	}
	target, err := c.writeImage(ctx, base, config, layer, map[string]string{labels.GCRefSnapshot + record.GetSnapshotter(): chain})
	if err != nil {
		return nil, err
	}
	return c.nameImage(ctx, name, target)
}

// imageName gives the full form of a name for an image.
func imageName(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if _, ok := named.(reference.Digested); ok {
		return "", fmt.Errorf("image name %q: a name with a digest can't be given, it follows from the image: %w", name, errdefs.ErrInvalidArgument)
	}
	return named.String(), nil
}

// baseOf reads the image that a container was made from, and makes sure that it is
// that one still, and whole.
func (c *Client) baseOf(ctx context.Context, record *containers.Container) (*ImageConfig, error) {
	image, err := c.Images().Get(ctx, &images.GetImageRequest{Name: record.GetImage()})
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("image %q, which container %q was made from, is gone; bring it in again: %w",
			record.GetImage(), record.GetId(), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", record.GetImage(), err)
	}
	base, err := c.ImageConfig(ctx, image.GetImage())
	if err != nil {
		return nil, err
	}
	stat, err := c.Snapshots().Stat(ctx, &snapshots.StatSnapshotRequest{Snapshotter: record.GetSnapshotter(), Key: record.GetSnapshotKey()})
	if err != nil {
		return nil, fmt.Errorf("snapshot of container %q: %w", record.GetId(), err)
	}
	if parent := stat.GetInfo().GetParent(); parent != base.ChainID.String() {
		return nil, fmt.Errorf("image %q is another one than when container %q was made from it: its layers are %q, the container is on %q; give that one its name back, or make the container anew: %w",
			record.GetImage(), record.GetId(), base.ChainID, parent, errdefs.ErrFailedPrecondition)
	}
	for _, layer := range base.Layers {
		if _, err := c.Content().Info(ctx, &content.InfoRequest{Digest: layer.Digest.String()}); err != nil {
			return nil, fmt.Errorf("image %q: layer %s: %w", record.GetImage(), layer.Digest, err)
		}
	}
	return base, nil
}

// committed is what the history of an image says of how a layer came to be.
const committed = "berth commit"

// commandOf tells what made the changes, for the image's history.
func commandOf(container *Container) string {
	s, err := container.Spec()
	if err != nil || s.Process == nil {
		return committed // its spec is not ours to read
	}
	return committed + ": " + strings.Join(s.Process.Args, " ")
}

// layerOf makes the layer with what is different in a container.
func (c *Client) layerOf(ctx context.Context, container *Container, parent string, o CommitOptions) (_ imagespec.Descriptor, _ digest.Digest, err error) {
	below, done, err := c.view(ctx, container.Record.GetSnapshotter(), parent)
	if err != nil {
		return imagespec.Descriptor{}, "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	above, err := container.mounts(ctx)
	if err != nil {
		return imagespec.Descriptor{}, "", err
	}
	request := &diff.DiffRequest{Left: below, Right: above, MediaType: o.MediaType}
	if !o.Epoch.IsZero() {
		request.SourceDateEpoch = timestamppb.New(o.Epoch)
	}
	if !o.LeaveRunning {
		resume, err := c.pause(ctx, container.ID())
		if err != nil {
			return imagespec.Descriptor{}, "", err
		}
		defer func() { err = errors.Join(err, resume()) }()
	}
	answer, err := c.Diff().Diff(ctx, request)
	if err != nil {
		return imagespec.Descriptor{}, "", fmt.Errorf("make a layer of container %q: %w", container.ID(), err)
	}
	layer := descriptor(answer.GetDiff())
	info, err := c.Content().Info(ctx, &content.InfoRequest{Digest: layer.Digest.String()})
	if err != nil {
		return imagespec.Descriptor{}, "", fmt.Errorf("layer %s: %w", layer.Digest, err)
	}
	diffID := layer.Digest
	if plain := info.GetInfo().GetLabels()[labels.Uncompressed]; plain != "" {
		diffID = digest.Digest(plain)
	}
	return layer, diffID, nil
}

func descriptor(d *types.Descriptor) imagespec.Descriptor {
	return imagespec.Descriptor{MediaType: d.GetMediaType(), Digest: digest.Digest(d.GetDigest()), Size: d.GetSize()}
}

// view shows a committed snapshot, "" none, until done is called.
func (c *Client) view(ctx context.Context, snapshotter, parent string) (mounts []*types.Mount, done func() error, err error) {
	if parent == "" {
		return nil, func() error { return nil }, nil
	}
	key := "view-" + rand.Text()
	remove := func() error {
		ctx, cancel := cleanupContext(ctx)
		defer cancel()
		return c.removeSnapshot(ctx, snapshotter, key)
	}
	made, err := c.Snapshots().View(ctx, &snapshots.ViewSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("view snapshot %q: %w", parent, err), remove())
	}
	return made.GetMounts(), remove, nil
}

// pause stops a container that runs, until resume is called.
func (c *Client) pause(ctx context.Context, id string) (resume func() error, err error) {
	got, err := c.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: id})
	if errdefs.IsNotFound(err) || err == nil && got.GetProcess().GetStatus() != task.Status_RUNNING {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state of container %q: %w", id, err)
	}
	resume = func() error {
		ctx, cancel := cleanupContext(ctx)
		defer cancel()
		_, err := c.Tasks().Resume(ctx, &tasks.ResumeTaskRequest{ContainerId: id})
		if err != nil && !c.paused(ctx, id) {
			return nil // it has ended, or somebody else was faster
		}
		if err != nil {
			return fmt.Errorf("container %q was paused for this, and stays so: %w", id, err)
		}
		return nil
	}
	if _, err = c.Tasks().Pause(ctx, &tasks.PauseTaskRequest{ContainerId: id}); err != nil {
		return nil, errors.Join(fmt.Errorf("pause container %q: %w", id, err), resume())
	}
	return resume, nil
}

// paused tells whether a container is paused; on doubt it is.
func (c *Client) paused(ctx context.Context, id string) bool {
	got, err := c.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: id})
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	status := got.GetProcess().GetStatus()
	return status == task.Status_PAUSED || status == task.Status_PAUSING
}

// unpackTop makes the snapshot of the new layer.
func (c *Client) unpackTop(ctx context.Context, snapshotter, parent, chain string, layer imagespec.Descriptor, diffID digest.Digest) (err error) {
	about := map[string]string{labels.SnapshotRef: chain, labels.SnapshotDiffID: diffID.String()}
	if parent != "" {
		about[labels.SnapshotParent] = parent
	}
	key := fmt.Sprintf("extract-%s %s", strconv.FormatInt(time.Now().UnixNano(), 10)+"-"+rand.Text()[:4], chain)
	prepared, err := c.Snapshots().Prepare(ctx, &snapshots.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent, Labels: about})
	if errdefs.IsAlreadyExists(err) {
		return nil // the same layer was made before
	}
	if err != nil {
		return fmt.Errorf("prepare the snapshot of layer %s: %w", layer.Digest, err)
	}
	defer func() {
		if err != nil {
			ctx, cancel := cleanupContext(ctx)
			defer cancel()
			err = errors.Join(err, c.removeSnapshot(ctx, snapshotter, key))
		}
	}()
	applied, err := c.Diff().Apply(ctx, &diff.ApplyRequest{
		Diff:   &types.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest.String(), Size: layer.Size},
		Mounts: prepared.GetMounts(),
	})
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", layer.Digest, err)
	}
	if got := applied.GetApplied().GetDigest(); got != diffID.String() {
		return fmt.Errorf("unpack layer %s: it is %s, and not %s: %w", layer.Digest, got, diffID, errdefs.ErrDataLoss)
	}
	_, err = c.Snapshots().Commit(ctx, &snapshots.CommitSnapshotRequest{Snapshotter: snapshotter, Name: chain, Key: key, Labels: about})
	if errdefs.IsAlreadyExists(err) { // another has been faster
		ctx, cancel := cleanupContext(ctx)
		defer cancel()
		return c.removeSnapshot(ctx, snapshotter, key)
	}
	if err != nil {
		return fmt.Errorf("commit the snapshot of layer %s: %w", layer.Digest, err)
	}
	return nil
}

// changed gives the part of an image's configuration that is for containers, with
// what change changes. What this program does not know of it stays.
func changed(base *ImageConfig, change func(*imagespec.ImageConfig) error) (map[string]json.RawMessage, error) {
	var raw struct {
		Config map[string]json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(base.raw, &raw); err != nil {
		return nil, fmt.Errorf("decode configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if change == nil {
		return raw.Config, nil
	}
	before, err := fields(base.Image.Config)
	if err != nil {
		return nil, err
	}
	if err := change(&base.Image.Config); err != nil {
		return nil, err
	}
	after, err := fields(base.Image.Config)
	if err != nil {
		return nil, err
	}
	all := map[string]json.RawMessage{}
	for key, value := range raw.Config {
		if _, known := before[key]; !known {
			all[key] = value
		}
	}
	for key, value := range after {
		all[key] = value
	}
	return all, nil
}

// fields gives the fields of a value as JSON has them.
func fields(v any) (all map[string]json.RawMessage, err error) {
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	return all, err
}

// writeImage stores the configuration and the manifest of an image of base with one
// more layer.
func (c *Client) writeImage(ctx context.Context, base *ImageConfig, config map[string]json.RawMessage, layer imagespec.Descriptor, keeps map[string]string) (imagespec.Descriptor, error) {
	whole, err := fields(base.Image)
	if err != nil {
		return imagespec.Descriptor{}, fmt.Errorf("encode configuration: %w", err)
	}
	if whole["config"], err = json.Marshal(config); err != nil {
		return imagespec.Descriptor{}, fmt.Errorf("encode configuration: %w", err)
	}
	manifest := imagespec.Manifest{
		Versioned: imageversion.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest,
	}
	if manifest.Config, err = c.writeJSON(ctx, imagespec.MediaTypeImageConfig, whole, keeps); err != nil {
		return imagespec.Descriptor{}, err
	}
	marks := map[string]string{labels.GCRefConfig: manifest.Config.Digest.String()}
	for i, one := range append(slices.Clone(base.Layers), layer) {
		if oci, ok := layerTypes[one.MediaType]; ok {
			one.MediaType = oci
		}
		manifest.Layers = append(manifest.Layers, one)
		marks[labels.GCRefLayer+strconv.Itoa(i)] = one.Digest.String()
	}
	return c.writeJSON(ctx, imagespec.MediaTypeImageManifest, manifest, marks)
}

// layerTypes are the OCI names of Docker's media types for layers: the manifest is
// OCI's.
var layerTypes = map[string]string{
	"application/vnd.docker.image.rootfs.diff.tar":              imagespec.MediaTypeImageLayer,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":         imagespec.MediaTypeImageLayerGzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":         imagespec.MediaTypeImageLayerZstd,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}

func (c *Client) writeJSON(ctx context.Context, mediaType string, v any, marks map[string]string) (imagespec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return imagespec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d, err := c.WriteBlob(ctx, data, marks)
	return imagespec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

// nameTries bounds how often nameImage goes about it while others do, too.
const nameTries = 3

// nameImage gives an image its name, and takes that from the one that had it.
func (c *Client) nameImage(ctx context.Context, name string, target imagespec.Descriptor) (*images.Image, error) {
	row := &images.Image{Name: name, Target: &types.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size}}
	for range nameTries {
		created, err := c.Images().Create(ctx, &images.CreateImageRequest{Image: row})
		if !errdefs.IsAlreadyExists(err) {
			return created.GetImage(), err
		}
		updated, err := c.Images().Update(ctx, &images.UpdateImageRequest{Image: row, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target"}}})
		if !errdefs.IsNotFound(err) {
			return updated.GetImage(), err
		}
	}
	return nil, fmt.Errorf("image %q comes and goes: %w", name, errdefs.ErrAborted)
}
