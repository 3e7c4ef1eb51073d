package services

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
)

// clients are all clients of a daemon and a context in which what they write is
// kept.
type clients struct {
	containers containersgrpc.ContainersClient
	content    contentgrpc.ContentClient
	images     imagesgrpc.ImagesClient
	leases     leasesgrpc.LeasesClient
	snapshots  snapshotsgrpc.SnapshotsClient
	sandboxes  sandboxgrpc.StoreClient
	ctx        context.Context
}

func clientsOf(t *testing.T, d *daemon) *clients {
	return &clients{
		containersgrpc.NewContainersClient(d), contentgrpc.NewContentClient(d), imagesgrpc.NewImagesClient(d),
		leasesgrpc.NewLeasesClient(d), snapshotsgrpc.NewSnapshotsClient(d), sandboxgrpc.NewStoreClient(d),
		lease(t, d, "ns"),
	}
}

func must[A any](t *testing.T) func(A, error) A {
	return func(a A, err error) A {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
}

// spec is a container's spec of a type that nobody knows.
func spec() *anypb.Any { return &anypb.Any{TypeUrl: "example.Spec", Value: []byte("{}")} }

// populate makes the objects that the vectors of object filters speak of.
func populate(t *testing.T, d *daemon) *clients {
	t.Helper()
	c := clientsOf(t, d)
	container := must[*containers.CreateContainerResponse](t)
	container(c.containers.Create(c.ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "c1", Image: "i1", Labels: map[string]string{"x": "1"}, Spec: spec(), Sandbox: "s1",
		Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"},
	}}))
	container(c.containers.Create(c.ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "c2", Labels: map[string]string{"nerdctl/name": "n"}, Spec: spec(), Snapshotter: "native", SnapshotKey: "k",
		Runtime: &containers.Container_Runtime{Name: "io.containerd.kata.v2"},
	}}))
	for name, labels := range map[string]map[string]string{
		"reg.example/library/a:1": {"x": "1", "dotted.key": "d"}, "reg.example/library/b:2": {"y": "2"}, "plain": nil,
	} {
		must[*images.CreateImageResponse](t)(c.images.Create(c.ctx, &images.CreateImageRequest{Image: &images.Image{
			Name: name, Labels: labels, Target: &types.Descriptor{
				MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest.FromString(name).String(),
				Size: int64(len(name)), Annotations: map[string]string{"an": "v"},
			},
		}}))
	}
	for id, labels := range map[string]map[string]string{"s1": {"x": "1"}, "s2": nil} {
		must[*sandbox.StoreCreateResponse](t)(c.sandboxes.Create(c.ctx, &sandbox.StoreCreateRequest{
			Sandbox: &types.Sandbox{SandboxId: id, Labels: labels},
		}))
	}
	one := put(c.ctx, t, d, []byte("one"))
	put(c.ctx, t, d, []byte("two"))
	must[*content.UpdateResponse](t)(c.content.Update(c.ctx, &content.UpdateRequest{Info: &content.Info{
		Digest: one.String(), Labels: map[string]string{"x": "1", "containerd.io/uncompressed": "sha256:q"},
	}}))
	ingest(t, c, "up-1")
	lease := must[*leases.CreateResponse](t)
	lease(c.leases.Create(c.ctx, &leases.CreateRequest{Id: "l1", Labels: map[string]string{"moby/prune.images": "true"}}))
	lease(c.leases.Create(c.ctx, &leases.CreateRequest{Id: "l2"}))
	prepare := must[*snapshotsapi.PrepareSnapshotResponse](t)
	prepare(c.snapshots.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "act", Labels: map[string]string{"x": "1"}}))
	prepare(c.snapshots.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "tmp"}))
	if _, err := c.snapshots.Commit(c.ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: "native", Key: "tmp", Name: "com"}); err != nil {
		t.Fatal(err)
	}
	must[*snapshotsapi.ViewSnapshotResponse](t)(c.snapshots.View(c.ctx, &snapshotsapi.ViewSnapshotRequest{Snapshotter: "native", Key: "vw", Parent: "com"}))
	return c
}

// ingest opens an ingest and leaves it.
func ingest(t *testing.T, c *clients, ref string) {
	t.Helper()
	s := must[writeClient](t)(c.content.Write(c.ctx))
	if err := s.Send(&content.WriteContentRequest{Ref: ref}); err != nil {
		t.Fatal(err)
	}
	must[*content.WriteContentResponse](t)(s.Recv())
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

type writeClient = contentgrpc.Content_WriteClient

// collectAll reads a stream to its end.
func collectAll[M any](recv func() (M, error), each func(M)) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		each(m)
	}
}

// lists gives, by kind of object, what a list with a filter answers.
func (c *clients) lists() map[string]func(filter string) ([]string, error) {
	blobs := map[string]string{digest.FromString("one").String(): "one", digest.FromString("two").String(): "two"}
	return map[string]func(string) ([]string, error){
		"containers": func(f string) (out []string, err error) {
			s, err := c.containers.ListStream(c.ctx, &containers.ListContainersRequest{Filters: []string{f}})
			if err == nil {
				err = collectAll(s.Recv, func(m *containers.ListContainerMessage) { out = append(out, m.GetContainer().GetId()) })
			}
			return out, err
		},
		"sandboxes": func(f string) (out []string, err error) {
			r, err := c.sandboxes.List(c.ctx, &sandbox.StoreListRequest{Filters: []string{f}})
			for _, s := range r.GetList() {
				out = append(out, s.GetSandboxId())
			}
			return out, err
		},
		"images": func(f string) (out []string, err error) {
			r, err := c.images.List(c.ctx, &images.ListImagesRequest{Filters: []string{f}})
			for _, i := range r.GetImages() {
				out = append(out, i.GetName())
			}
			return out, err
		},
		"content": func(f string) (out []string, err error) {
			s, err := c.content.List(c.ctx, &content.ListContentRequest{Filters: []string{f}})
			if err == nil {
				err = collectAll(s.Recv, func(m *content.ListContentResponse) {
					for _, i := range m.GetInfo() {
						out = append(out, blobs[i.GetDigest()])
					}
				})
			}
			slices.Sort(out)
			return out, err
		},
		"ingests": func(f string) (out []string, err error) {
			r, err := c.content.ListStatuses(c.ctx, &content.ListStatusesRequest{Filters: []string{f}})
			for _, i := range r.GetStatuses() {
				out = append(out, i.GetRef())
			}
			return out, err
		},
		"leases": func(f string) (out []string, err error) {
			r, err := c.leases.List(c.ctx, &leases.ListRequest{Filters: []string{f}})
			for _, l := range r.GetLeases() {
				if strings.HasPrefix(l.GetId(), "l") { // not the lease that the test itself works under
					out = append(out, l.GetId())
				}
			}
			return out, err
		},
		"snapshots": func(f string) (out []string, err error) {
			s, err := c.snapshots.List(c.ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "native", Filters: []string{f}})
			if err == nil {
				err = collectAll(s.Recv, func(m *snapshotsapi.ListSnapshotsResponse) {
					for _, i := range m.GetInfo() {
						out = append(out, i.GetName())
					}
				})
			}
			return out, err
		},
	}
}

func TestObjectFilterVectors(t *testing.T) {
	var v struct {
		Kinds map[string][]struct {
			Filter, Result string
			Matches        []string
		}
	}
	readVectors(t, "object-filters.json", &v)
	lists := populate(t, start(t)).lists()
	if want, got := slices.Sorted(maps.Keys(v.Kinds)), slices.Sorted(maps.Keys(lists)); !slices.Equal(want, got) {
		t.Fatalf("vectors of %v, lists of %v", want, got)
	}
	for kind, cases := range v.Kinds {
		for _, c := range cases {
			got, err := lists[kind](c.Filter)
			if result(err) != c.Result {
				t.Errorf("%s with %q: %v, want %s", kind, c.Filter, err, c.Result)
				continue
			}
			if diff := cmp.Diff(append([]string{}, c.Matches...), append([]string{}, got...)); diff != "" {
				t.Errorf("%s with %q: %s", kind, c.Filter, diff)
			}
		}
	}
}

// result gives an error's code as the vectors of stores spell it.
func result(err error) string {
	var snake strings.Builder
	for i, r := range status.Code(err).String() {
		if r >= 'A' && r <= 'Z' && i > 0 && status.Code(err) != 0 {
			snake.WriteByte('_')
		}
		snake.WriteRune(r)
	}
	return strings.ToLower(snake.String())
}

func TestLabelVectors(t *testing.T) {
	var v struct {
		Labels []struct {
			Labels, Given                       map[string]string
			Mask                                []string
			Container, Content, Image, Snapshot any
		}
	}
	readVectors(t, "stores.json", &v)
	d := start(t)
	c := clientsOf(t, d)
	blob := put(c.ctx, t, d, []byte("blob")).String()
	runtime := &containers.Container_Runtime{Name: "io.containerd.runc.v2"}
	must[*containers.CreateContainerResponse](t)(c.containers.Create(c.ctx, &containers.CreateContainerRequest{Container: &containers.Container{Id: "c", Runtime: runtime, Spec: spec()}}))
	target := &types.Descriptor{MediaType: "m", Digest: blob, Size: 4}
	must[*images.CreateImageResponse](t)(c.images.Create(c.ctx, &images.CreateImageRequest{Image: &images.Image{Name: "i", Target: target}}))
	must[*snapshotsapi.PrepareSnapshotResponse](t)(c.snapshots.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "s"}))

	updates := map[string]func(labels map[string]string, mask []string) (map[string]string, error){
		"container": func(l map[string]string, mask []string) (map[string]string, error) {
			r, err := c.containers.Update(c.ctx, &containers.UpdateContainerRequest{
				Container: &containers.Container{Id: "c", Labels: l, Runtime: runtime, Spec: spec()}, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			return r.GetContainer().GetLabels(), err
		},
		"content": func(l map[string]string, mask []string) (map[string]string, error) {
			r, err := c.content.Update(c.ctx, &content.UpdateRequest{Info: &content.Info{Digest: blob, Labels: l}, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			return r.GetInfo().GetLabels(), err
		},
		"image": func(l map[string]string, mask []string) (map[string]string, error) {
			r, err := c.images.Update(c.ctx, &images.UpdateImageRequest{Image: &images.Image{Name: "i", Labels: l, Target: target}, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			return r.GetImage().GetLabels(), err
		},
		"snapshot": func(l map[string]string, mask []string) (map[string]string, error) {
			r, err := c.snapshots.Update(c.ctx, &snapshotsapi.UpdateSnapshotRequest{Snapshotter: "native",
				Info: &snapshotsapi.Info{Name: "s", Labels: l}, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			return r.GetInfo().GetLabels(), err
		},
	}
	for i, vector := range v.Labels {
		if vector.Given["a"] == "4096 bytes" {
			vector.Given["a"] = strings.Repeat("x", 4096)
		}
		for object, want := range map[string]any{"container": vector.Container, "content": vector.Content, "image": vector.Image, "snapshot": vector.Snapshot} {
			if _, err := updates[object](vector.Labels, []string{"labels"}); err != nil {
				t.Fatalf("%d, %s: %v", i, object, err)
			}
			labels, err := updates[object](vector.Given, vector.Mask)
			var got any = result(err)
			if err == nil {
				m := map[string]any{}
				for k, v := range labels {
					m[k] = v
				}
				got = m
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d, %s with mask %v: %s", i, object, vector.Mask, diff)
			}
		}
	}
}
