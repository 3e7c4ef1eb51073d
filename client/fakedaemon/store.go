package fakedaemon

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/berth/logs/v1"
	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/internal/names"
)

// AddBlob stores a blob.
func (d *Daemon) AddBlob(data []byte) imagespec.Descriptor {
	desc := imagespec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blobs[desc.Digest.String()] = data
	return desc
}

// AddJSON stores a value as a blob of JSON.
func (d *Daemon) AddJSON(t testing.TB, mediaType string, v any) imagespec.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := d.AddBlob(data)
	desc.MediaType = mediaType
	return desc
}

// AddManifest stores the content of an image with one layer, and its layer as an
// unpacked snapshot.
func (d *Daemon) AddManifest(t testing.TB, config imagespec.Image) imagespec.Descriptor {
	t.Helper()
	config.RootFS = imagespec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("layer")}}
	manifest := imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imagespec.MediaTypeImageManifest,
		Config:    d.AddJSON(t, imagespec.MediaTypeImageConfig, config),
		Layers:    []imagespec.Descriptor{{MediaType: imagespec.MediaTypeImageLayerGzip, Digest: digest.FromString("packed layer"), Size: 1000}},
	}
	d.mu.Lock()
	d.parents[identity.ChainID(config.RootFS.DiffIDs).String()] = true
	d.mu.Unlock()
	return d.AddJSON(t, imagespec.MediaTypeImageManifest, manifest)
}

// AddImage gives content a name.
func (d *Daemon) AddImage(name string, target imagespec.Descriptor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[name] = &images.Image{
		Name:      name,
		Target:    &types.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size},
		CreatedAt: timestamppb.Now(),
		UpdatedAt: timestamppb.Now(),
	}
}

// Pack makes an image known but not unpacked.
func (d *Daemon) Pack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.parents)
}

func missing(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, name, errdefs.ErrNotFound)
}

type imagesService struct {
	imagesgrpc.UnimplementedImagesServer
	d *Daemon
}

func (s imagesService) Get(_ context.Context, r *images.GetImageRequest) (*images.GetImageResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	image := s.d.images[r.Name]
	if image == nil {
		return nil, missing("image", r.Name)
	}
	return &images.GetImageResponse{Image: image}, nil
}

func (s imagesService) List(_ context.Context, r *images.ListImagesRequest) (*images.ListImagesResponse, error) {
	match, err := filter.ParseAll(r.Filters...)
	if err != nil {
		return nil, err
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	answer := &images.ListImagesResponse{}
	for _, name := range slices.Sorted(maps.Keys(s.d.images)) {
		image := s.d.images[name]
		fields := map[string]string{"name": name, "target.digest": image.Target.Digest}
		if match.Match(adaptor(fields)) {
			answer.Images = append(answer.Images, image)
		}
	}
	return answer, nil
}

// adaptor lets a filter read fields.
func adaptor(fields map[string]string) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		value, ok := fields[strings.Join(path, ".")]
		return value, ok
	})
}

type contentService struct {
	contentgrpc.UnimplementedContentServer
	d *Daemon
}

// Read answers in two parts, as the real one may in any number.
func (s contentService) Read(r *content.ReadContentRequest, stream grpc.ServerStreamingServer[content.ReadContentResponse]) error {
	s.d.mu.Lock()
	data, ok := s.d.blobs[r.Digest]
	s.d.mu.Unlock()
	if !ok {
		return missing("blob", r.Digest)
	}
	half := len(data) / 2
	if err := stream.Send(&content.ReadContentResponse{Data: data[:half]}); err != nil {
		return err
	}
	return stream.Send(&content.ReadContentResponse{Offset: int64(half), Data: data[half:]})
}

type snapshotsService struct {
	snapshotsgrpc.UnimplementedSnapshotsServer
	d *Daemon
}

func (s snapshotsService) Prepare(ctx context.Context, r *snapshots.PrepareSnapshotRequest) (*snapshots.PrepareSnapshotResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if _, taken := s.d.snapshots[r.Key]; taken {
		return nil, fmt.Errorf("snapshot %q: %w", r.Key, errdefs.ErrAlreadyExists)
	}
	if !s.d.parents[r.Parent] {
		return nil, missing("parent snapshot", r.Parent)
	}
	s.d.snapshots[r.Key] = leaseOf(ctx)
	return &snapshots.PrepareSnapshotResponse{Mounts: s.d.mounts()}, nil
}

func (s snapshotsService) Mounts(_ context.Context, r *snapshots.MountsRequest) (*snapshots.MountsResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if _, ok := s.d.snapshots[r.Key]; !ok {
		return nil, missing("snapshot", r.Key)
	}
	return &snapshots.MountsResponse{Mounts: s.d.mounts()}, nil
}

func (s snapshotsService) Remove(_ context.Context, r *snapshots.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if _, ok := s.d.snapshots[r.Key]; !ok {
		return nil, missing("snapshot", r.Key)
	}
	delete(s.d.snapshots, r.Key)
	return &emptypb.Empty{}, nil
}

func (d *Daemon) mounts() []*types.Mount {
	return []*types.Mount{{Type: "bind", Source: d.Rootfs, Options: []string{"rw", "rbind"}}}
}

type containersService struct {
	containersgrpc.UnimplementedContainersServer
	d *Daemon
}

func (s containersService) Create(_ context.Context, r *containers.CreateContainerRequest) (*containers.CreateContainerResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	id := r.Container.Id
	if s.d.containers[id] != nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrAlreadyExists)
	}
	row := proto.CloneOf(r.Container)
	row.CreatedAt, row.UpdatedAt = timestamppb.Now(), timestamppb.Now()
	s.d.containers[id] = row
	return &containers.CreateContainerResponse{Container: row}, nil
}

func (s containersService) Get(_ context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	if err := names.Identifier(r.Id); err != nil {
		return nil, err
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	row := s.d.containers[r.Id]
	if row == nil {
		return nil, missing("container", r.Id)
	}
	return &containers.GetContainerResponse{Container: proto.CloneOf(row)}, nil
}

func (s containersService) List(_ context.Context, r *containers.ListContainersRequest) (*containers.ListContainersResponse, error) {
	match, err := filter.ParseAll(r.Filters...)
	if err != nil {
		return nil, err
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	answer := &containers.ListContainersResponse{}
	for _, id := range slices.Sorted(maps.Keys(s.d.containers)) {
		if match.Match(adaptor(map[string]string{"id": id})) {
			answer.Containers = append(answer.Containers, proto.CloneOf(s.d.containers[id]))
		}
	}
	return answer, nil
}

// Update knows masks of single labels only.
func (s containersService) Update(_ context.Context, r *containers.UpdateContainerRequest) (*containers.UpdateContainerResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	row := s.d.containers[r.Container.Id]
	if row == nil {
		return nil, missing("container", r.Container.Id)
	}
	for _, path := range r.UpdateMask.GetPaths() {
		key, ok := strings.CutPrefix(path, "labels.")
		if !ok {
			return nil, fmt.Errorf("path %q: %w", path, errdefs.ErrInvalidArgument)
		}
		if value := r.Container.Labels[key]; value != "" {
			if row.Labels == nil {
				row.Labels = map[string]string{}
			}
			row.Labels[key] = value
		} else {
			delete(row.Labels, key)
		}
	}
	return &containers.UpdateContainerResponse{Container: proto.CloneOf(row)}, nil
}

func (s containersService) Delete(_ context.Context, r *containers.DeleteContainerRequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.d.containers[r.Id] == nil {
		return nil, missing("container", r.Id)
	}
	delete(s.d.containers, r.Id)
	return &emptypb.Empty{}, nil
}

type leasesService struct {
	leasesgrpc.UnimplementedLeasesServer
	d *Daemon
}

func (s leasesService) Create(_ context.Context, r *leases.CreateRequest) (*leases.CreateResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	id := fmt.Sprintf("lease-%d", len(s.d.calls))
	s.d.leases[id] = true
	return &leases.CreateResponse{Lease: &leases.Lease{Id: id, Labels: r.Labels}}, nil
}

// Delete collects, too: snapshots of the lease that no container has.
func (s leasesService) Delete(_ context.Context, r *leases.DeleteRequest) (*emptypb.Empty, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if !s.d.leases[r.Id] {
		return nil, missing("lease", r.Id)
	}
	delete(s.d.leases, r.Id)
	for key, lease := range s.d.snapshots {
		if lease == r.Id && s.d.containers[key] == nil {
			delete(s.d.snapshots, key)
		}
	}
	return &emptypb.Empty{}, nil
}

type namespacesService struct {
	namespacesgrpc.UnimplementedNamespacesServer
}

func (namespacesService) Get(_ context.Context, r *namespaces.GetNamespaceRequest) (*namespaces.GetNamespaceResponse, error) {
	return &namespaces.GetNamespaceResponse{Namespace: &namespaces.Namespace{Name: r.Name}}, nil
}

type introspectionService struct {
	introspectiongrpc.UnimplementedIntrospectionServer
}

func (introspectionService) Plugins(context.Context, *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{{Type: "io.containerd.snapshotter.v1", Id: "native"}}}, nil
}

type logsService struct {
	logsgrpc.UnimplementedLogsServer
}

func (logsService) Prepare(_ context.Context, r *logs.PrepareRequest) (*logs.PrepareResponse, error) {
	return &logs.PrepareResponse{Uri: "file:///dev/null"}, nil
}

// Corrupt changes the bytes of a blob, but not its digest.
func (d *Daemon) Corrupt(name digest.Digest, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blobs[name.String()] = data
}
