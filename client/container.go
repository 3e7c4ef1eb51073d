package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/spec"
)

// DefaultRuntime is the runtime of containers that name none.
const DefaultRuntime = "io.containerd.runc.v2"

// Snapshotters by preference.
const (
	overlaySnapshotter = "overlayfs"
	nativeSnapshotter  = "native"
)

// snapshotterType is the type of plugins that are snapshotters.
const snapshotterType = "io.containerd.snapshotter.v1"

// remapIDs is the capability of snapshotters that show files with other owners.
const remapIDs = "remap-ids"

// ContainerOptions says what container to make. ID and Image are required.
type ContainerOptions struct {
	ID    string
	Image string // as FindImage takes it
	// Spec is what the container is to be; ID and Namespace in it are set by
	// NewContainer.
	Spec           spec.Options
	Snapshotter    string        // default: the namespace's, else what the daemon has
	Runtime        string        // default: the namespace's, else DefaultRuntime
	RuntimeOptions proto.Message // such as *runc.Options; nil: none
	Labels         map[string]string
}

// Container is a container's record as it was when it was read.
type Container struct {
	Record *containers.Container
	// Config is the image's configuration; only NewContainer sets it.
	Config *imagespec.ImageConfig

	client *Client
}

// Container reads the record of a container. NotFound: there is none.
func (c *Client) Container(ctx context.Context, id string) (*Container, error) {
	got, err := c.Containers().Get(ctx, &containers.GetContainerRequest{Id: id})
	if err != nil {
		return nil, err
	}
	return &Container{Record: got.GetContainer(), client: c}, nil
}

// NewContainer makes a snapshot of the image and a container on it, which
// nothing runs in yet. When it fails nothing is left. Call it under a lease.
func (c *Client) NewContainer(ctx context.Context, o ContainerOptions) (made *Container, err error) {
	if err := names.Identifier(o.ID); err != nil {
		return nil, err
	}
	image, err := c.FindImage(ctx, o.Image)
	if err != nil {
		return nil, err
	}
	config, err := c.ImageConfig(ctx, image)
	if err != nil {
		return nil, err
	}
	if err := c.defaults(ctx, &o); err != nil {
		return nil, err
	}
	mounts, err := c.prepare(ctx, o, config, image.GetName())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := cleanupContext(ctx)
			defer cancel()
			err = errors.Join(err, c.removeSnapshot(ctx, o.Snapshotter, o.ID))
		}
	}()
	record, err := c.record(o, config, image.GetName(), mounts)
	if err != nil {
		return nil, err
	}
	created, err := c.createRecord(ctx, record)
	if err != nil {
		return nil, errors.Join(err, c.undoCreate(ctx, record))
	}
	return &Container{Record: created.GetContainer(), Config: &config.Image.Config, client: c}, nil
}

// createRecord creates the record of a container. It does not let go of a call
// that is under way when ctx ends: the daemon might go through with it after
// undoCreate has looked.
func (c *Client) createRecord(ctx context.Context, record *containers.Container) (*containers.CreateContainerResponse, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	whole, cancel := cleanupContext(ctx)
	defer cancel()
	created, err := c.Containers().Create(whole, &containers.CreateContainerRequest{Container: record})
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return created, err
}

// undoCreate removes the record of a Create that failed: a call that was cut
// off may have done its work. A record on the same snapshot is this call's, as
// nobody else could make a snapshot of that name meanwhile.
func (c *Client) undoCreate(ctx context.Context, record *containers.Container) error {
	ctx, cancel := cleanupContext(ctx)
	defer cancel()
	there, err := c.Containers().Get(ctx, &containers.GetContainerRequest{Id: record.GetId()})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what is left of container %q: %w", record.GetId(), err)
	}
	found := there.GetContainer()
	if found.GetSnapshotter() != record.GetSnapshotter() || found.GetSnapshotKey() != record.GetSnapshotKey() {
		return nil
	}
	return c.removeRecord(ctx, record.GetId())
}

// defaults fills in what the namespace or the daemon decides.
func (c *Client) defaults(ctx context.Context, o *ContainerOptions) error {
	if o.Runtime != "" && o.Snapshotter != "" {
		return nil
	}
	ns, err := c.Namespaces().Get(ctx, &namespaces.GetNamespaceRequest{Name: c.namespace})
	if err != nil {
		return fmt.Errorf("namespace %q: %w", c.namespace, err)
	}
	chosen := ns.GetNamespace().GetLabels()
	if o.Runtime == "" {
		o.Runtime = chosen[labels.DefaultRuntime]
	}
	if o.Runtime == "" {
		o.Runtime = DefaultRuntime
	}
	if o.Snapshotter == "" {
		o.Snapshotter = chosen[labels.DefaultSnapshotter]
	}
	if o.Snapshotter == "" {
		o.Snapshotter, err = c.snapshotter(ctx)
	}
	return err
}

// snapshotter asks the daemon which snapshotters work and picks the best.
func (c *Client) snapshotter(ctx context.Context) (string, error) {
	list, err := c.Introspection().Plugins(ctx, &introspection.PluginsRequest{Filters: []string{"type==" + snapshotterType}})
	if err != nil {
		return "", fmt.Errorf("list snapshotters: %w", err)
	}
	works := map[string]bool{}
	for _, plugin := range list.GetPlugins() {
		works[plugin.GetId()] = plugin.GetInitErr() == nil
	}
	for _, name := range []string{overlaySnapshotter, nativeSnapshotter} {
		if works[name] {
			return name, nil
		}
	}
	return "", fmt.Errorf("the daemon has neither snapshotter %q nor %q: %w", overlaySnapshotter, nativeSnapshotter, errdefs.ErrFailedPrecondition)
}

// NotUnpackedError says that an image is there, but its layers are not unpacked
// for a snapshotter.
type NotUnpackedError struct{ Image, Snapshotter string }

// Error names both.
func (e *NotUnpackedError) Error() string {
	return fmt.Sprintf("image %q is not unpacked for snapshotter %q", e.Image, e.Snapshotter)
}

// prepare makes the container's snapshot.
func (c *Client) prepare(ctx context.Context, o ContainerOptions, config *ImageConfig, image string) ([]*types.Mount, error) {
	marks, err := c.owners(ctx, o)
	if err != nil {
		return nil, err
	}
	prepared, err := c.Snapshots().Prepare(ctx, &snapshots.PrepareSnapshotRequest{
		Snapshotter: o.Snapshotter, Key: o.ID, Parent: config.ChainID.String(), Labels: marks,
	})
	if errdefs.IsNotFound(err) && config.ChainID != "" {
		return nil, &NotUnpackedError{Image: image, Snapshotter: o.Snapshotter}
	}
	// A call that was cut off may have done its work. What it made then is the
	// lease's, and goes with it: to remove it by name could hit another's.
	return prepared.GetMounts(), err
}

// owners gives the labels of a snapshot whose files show other owners than they
// have on disk, for a container with a user namespace.
func (c *Client) owners(ctx context.Context, o ContainerOptions) (map[string]string, error) {
	if o.Spec.UserNS == nil {
		return nil, nil
	}
	if err := o.Spec.CheckUsers(); err != nil {
		return nil, err
	}
	list, err := c.Introspection().Plugins(ctx, &introspection.PluginsRequest{
		Filters: []string{"type==" + snapshotterType + ",id==" + o.Snapshotter},
	})
	if err != nil {
		return nil, fmt.Errorf("ask what snapshotter %q can do: %w", o.Snapshotter, err)
	}
	for _, plugin := range list.GetPlugins() {
		if slices.Contains(plugin.GetCapabilities(), remapIDs) {
			return o.Spec.UserNS.Labels(), nil
		}
	}
	return nil, fmt.Errorf("snapshotter %q can't show files with other owners, which a user namespace needs (overlayfs can, on Linux 5.19 and file systems with id-mapped mounts): %w",
		o.Snapshotter, errdefs.ErrFailedPrecondition)
}

// record is the row that NewContainer stores.
func (c *Client) record(o ContainerOptions, config *ImageConfig, image string, mounts []*types.Mount) (*containers.Container, error) {
	host, err := spec.ReadHost()
	if err != nil {
		return nil, err
	}
	if o.Spec.Privileged {
		if host.Devices, err = spec.HostDevices(); err != nil {
			return nil, err
		}
	}
	o.Spec.ID, o.Spec.Namespace = o.ID, c.namespace
	var s *specs.Spec
	err = withRoot(mounts, func(root *spec.Root) (err error) {
		s, err = spec.Build(o.Spec, config.Image.Config, root, host)
		return err
	})
	if err != nil {
		return nil, err
	}
	packed, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	runtime := &containers.Container_Runtime{Name: o.Runtime}
	if o.RuntimeOptions != nil {
		if runtime.Options, err = protobuf.MarshalAny(o.RuntimeOptions); err != nil {
			return nil, fmt.Errorf("encode runtime options: %w", err)
		}
	}
	marks := map[string]string{}
	if signal := config.Image.Config.StopSignal; signal != "" {
		marks[LabelStopSignal] = signal
	}
	maps.Copy(marks, o.Labels)
	return &containers.Container{
		Id:          o.ID,
		Labels:      marks,
		Image:       image,
		Runtime:     runtime,
		Spec:        &anypb.Any{TypeUrl: protobuf.TypeSpec, Value: packed},
		Snapshotter: o.Snapshotter,
		SnapshotKey: o.ID,
	}, nil
}

// ID is the container's id.
func (c *Container) ID() string { return c.Record.GetId() }

// Spec decodes the container's OCI spec.
func (c *Container) Spec() (*specs.Spec, error) {
	var s specs.Spec
	if err := json.Unmarshal(c.Record.GetSpec().GetValue(), &s); err != nil {
		return nil, fmt.Errorf("decode spec of container %q: %w", c.ID(), err)
	}
	return &s, nil
}

// mounts asks how to mount the container's root file system.
func (c *Container) mounts(ctx context.Context) ([]*types.Mount, error) {
	if c.Record.GetSnapshotKey() == "" {
		return nil, nil
	}
	answer, err := c.client.Snapshots().Mounts(ctx, &snapshots.MountsRequest{
		Snapshotter: c.Record.GetSnapshotter(), Key: c.Record.GetSnapshotKey(),
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of container %q: %w", c.ID(), err)
	}
	return answer.GetMounts(), nil
}
