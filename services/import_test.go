package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/berthd/berth/api/berth/images/v1"
	bimagesgrpc "github.com/berthd/berth/api/berth/images/v1/imagesgrpc"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	diffapi "github.com/berthd/berth/api/services/diff/v1"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/testimage"
)

// archive is an OCI layout as a tar, with an image of so many layers.
func archive(t *testing.T, name string, layers int) []byte {
	t.Helper()
	image := testimage.Image{Name: name}
	for i := range layers {
		layer, err := testimage.Layer(testimage.File{Name: fmt.Sprintf("f%d", i), Body: fmt.Sprintf("body %d", i)})
		if err != nil {
			t.Fatal(err)
		}
		image.Layers = append(image.Layers, layer)
	}
	layout, err := testimage.NewLayout(testimage.Gzip, image)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := layout.WriteTar(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// importAll sends a whole archive before it reads the first answer.
func importAll(t *testing.T, d *daemon, o *api.ImportOptions, data []byte) (made []*api.Imported, progress []*api.Progress, err error) {
	t.Helper()
	s, err := bimagesgrpc.NewImagesClient(d).Import(in(t, "ns"))
	if err != nil {
		return nil, nil, err
	}
	if o != nil {
		if err := s.Send(&api.ImportRequest{Part: &api.ImportRequest_Options{Options: o}}); err != nil {
			t.Fatal(err)
		}
	}
	for len(data) > 0 {
		n := min(100, len(data)) // many small messages
		if err := s.Send(&api.ImportRequest{Part: &api.ImportRequest_Data{Data: data[:n]}}); errors.Is(err, io.EOF) {
			break // the answer says why
		} else if err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	err = collectAll(s.Recv, func(e *api.ImportEvent) {
		if i := e.GetImage(); i != nil {
			made = append(made, i)
		} else {
			progress = append(progress, e.GetProgress())
		}
	})
	return made, progress, err
}

func TestImport(t *testing.T) {
	d := start(t)
	made, progress, err := importAll(t, d, &api.ImportOptions{}, archive(t, "docker.io/library/many:1", 40))
	if err != nil || len(made) != 1 || made[0].GetName() != "docker.io/library/many:1" || made[0].GetChainId() == "" {
		t.Fatalf("made %v, error %v", made, err)
	}
	last := map[string]string{}
	for _, p := range progress {
		last[p.GetDigest()] = p.GetStatus()
	}
	unpacked := 0
	for _, status := range last {
		if status == "unpacked" {
			unpacked++
		}
	}
	if unpacked != 40 {
		t.Errorf("%d objects of %d end as unpacked, want the 40 layers", unpacked, len(last))
	}
	i, err := imagesgrpc.NewImagesClient(d).Get(t.Context(), &images.GetImageRequest{Name: made[0].GetName()})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a namespace: %v, error %v", i, err)
	}
	i, err = imagesgrpc.NewImagesClient(d).Get(in(t, "ns"), &images.GetImageRequest{Name: made[0].GetName()})
	if err != nil || i.GetImage().GetTarget().GetDigest() != made[0].GetDigest() {
		t.Errorf("the image is %v, error %v", i, err)
	}
	if _, err := snapshotsgrpc.NewSnapshotsClient(d).Stat(in(t, "ns"), &snapshotsapi.StatSnapshotRequest{Snapshotter: "native", Key: made[0].GetChainId()}); err != nil {
		t.Errorf("its snapshot: %v", err)
	}
}

func TestBadImports(t *testing.T) {
	d := start(t)
	good := archive(t, "docker.io/library/x:1", 2)
	for name, c := range map[string]struct {
		o    *api.ImportOptions
		data []byte
		want codes.Code
	}{
		"no options":       {nil, good, codes.InvalidArgument},
		"no message":       {nil, nil, codes.InvalidArgument},
		"nothing":          {&api.ImportOptions{}, nil, codes.InvalidArgument},
		"no archive":       {&api.ImportOptions{}, bytes.Repeat([]byte("nonsense"), 1000), codes.InvalidArgument},
		"half":             {&api.ImportOptions{}, good[:len(good)/2], codes.InvalidArgument},
		"bad snapshotter":  {&api.ImportOptions{Snapshotter: "zfs"}, good, codes.InvalidArgument},
		"another platform": {&api.ImportOptions{Platform: "plan9/mips"}, good, codes.NotFound},
	} {
		made, _, err := importAll(t, d, c.o, c.data)
		if status.Code(err) != c.want || len(made) > 0 {
			t.Errorf("%s: made %v, error %v, want %v", name, made, err, c.want)
		}
	}
	list, err := imagesgrpc.NewImagesClient(d).List(in(t, "ns"), &images.ListImagesRequest{})
	if err != nil || len(list.GetImages()) > 0 {
		t.Errorf("left: %v, error %v", list, err)
	}
}

func TestDiffApply(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "ns")
	layer, err := testimage.Layer(testimage.File{Name: "a", Body: "from the layer"})
	if err != nil {
		t.Fatal(err)
	}
	blob := put(ctx, t, d, layer)
	p, err := snapshotsgrpc.NewSnapshotsClient(d).Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	c := diffgrpc.NewDiffClient(d)
	desc := &types.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: blob.String(), Size: int64(len(layer))}
	r, err := c.Apply(ctx, &diffapi.ApplyRequest{Diff: desc, Mounts: p.GetMounts(), SyncFs: true})
	if err != nil || r.GetApplied().GetDigest() != blob.String() || r.GetApplied().GetSize() != int64(len(layer)) ||
		r.GetApplied().GetMediaType() != "application/vnd.oci.image.layer.v1.tar" {
		t.Errorf("applied %v, error %v", r, err)
	}
	if got, err := os.ReadFile(filepath.Join(p.GetMounts()[0].GetSource(), "a")); err != nil || string(got) != "from the layer" {
		t.Errorf("the file is %q, error %v", got, err)
	}
	for name, x := range map[string]struct {
		r    *diffapi.ApplyRequest
		want codes.Code
	}{
		"nothing":      {&diffapi.ApplyRequest{}, codes.InvalidArgument},
		"bad digest":   {&diffapi.ApplyRequest{Diff: &types.Descriptor{Digest: "x"}, Mounts: p.GetMounts()}, codes.InvalidArgument},
		"no mounts":    {&diffapi.ApplyRequest{Diff: desc}, codes.InvalidArgument},
		"unknown blob": {&diffapi.ApplyRequest{Diff: &types.Descriptor{Digest: "sha256:" + fmt.Sprintf("%064d", 1), MediaType: desc.MediaType}, Mounts: p.GetMounts()}, codes.NotFound},
	} {
		if err := lastErr(c.Apply(ctx, x.r)); status.Code(err) != x.want {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if err := lastErr(c.Apply(t.Context(), &diffapi.ApplyRequest{Diff: desc, Mounts: p.GetMounts()})); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a namespace: %v", err)
	}
}

// TestDiff makes layers of a snapshot, which are content like any other.
func TestDiff(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "ns")
	p, err := snapshotsgrpc.NewSnapshotsClient(d).Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	root := p.GetMounts()[0].GetSource()
	if err := os.WriteFile(filepath.Join(root, "a"), []byte("of the container"), 0o640); err != nil {
		t.Fatal(err)
	}
	c, store := diffgrpc.NewDiffClient(d), contentgrpc.NewContentClient(d)
	ask := func(mediaType string, marks map[string]string) *types.Descriptor {
		t.Helper()
		r, err := c.Diff(ctx, &diffapi.DiffRequest{
			Right: p.GetMounts(), Ref: "layer", MediaType: mediaType, Labels: marks, SourceDateEpoch: timestamppb.New(time.Unix(1000, 0)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetDiff()
	}
	first := ask("", map[string]string{"a": "1"})
	if first.GetMediaType() != "application/vnd.oci.image.layer.v1.tar+gzip" {
		t.Errorf("made %v", first)
	}
	// An upload under that ref that was begun and left starts anew.
	begun, err := store.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(begun.Send(&contentapi.WriteContentRequest{Ref: "layer", Action: contentapi.WriteAction_WRITE, Data: []byte("other bytes")}), begun.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = begun.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if zstd := ask("application/vnd.oci.image.layer.v1.tar+zstd", nil); zstd.GetMediaType() != "application/vnd.oci.image.layer.v1.tar+zstd" {
		t.Errorf("made %v", zstd)
	}
	plain := ask("application/vnd.oci.image.layer.v1.tar", nil)
	// Made again it is there, and gets the labels that it lacks.
	if again := ask("", map[string]string{"a": "2", "b": "2"}); again.GetDigest() != first.GetDigest() || again.GetSize() != first.GetSize() {
		t.Errorf("made again: %v, before %v", again, first)
	}
	info, err := store.Info(ctx, &contentapi.InfoRequest{Digest: first.GetDigest()})
	marks := info.GetInfo().GetLabels()
	if err != nil || marks["containerd.io/uncompressed"] != plain.GetDigest() || marks["a"] != "1" || marks["b"] != "2" {
		t.Errorf("labels %v, error %v", marks, err)
	}
	other, err := snapshotsgrpc.NewSnapshotsClient(d).Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Apply(ctx, &diffapi.ApplyRequest{Diff: first, Mounts: other.GetMounts()}); err != nil || r.GetApplied().GetDigest() != plain.GetDigest() {
		t.Errorf("applied %v, error %v", r, err)
	}
	if got, err := os.ReadFile(filepath.Join(other.GetMounts()[0].GetSource(), "a")); err != nil || string(got) != "of the container" {
		t.Errorf("the file is %q, error %v", got, err)
	}
	for name, x := range map[string]struct {
		r    *diffapi.DiffRequest
		want codes.Code
	}{
		"nothing":  {&diffapi.DiffRequest{}, codes.InvalidArgument},
		"type":     {&diffapi.DiffRequest{Right: p.GetMounts(), Ref: "bad", MediaType: "text/plain"}, codes.Unimplemented},
		"epoch":    {&diffapi.DiffRequest{Right: p.GetMounts(), Ref: "bad", SourceDateEpoch: &timestamppb.Timestamp{Nanos: -1}}, codes.InvalidArgument},
		"no mount": {&diffapi.DiffRequest{Right: []*types.Mount{{Type: "bind", Source: "/no/where", Options: []string{"bind"}}}, Ref: "bad"}, codes.Unknown},
	} {
		if err := lastErr(c.Diff(ctx, x.r)); status.Code(err) != x.want {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if left, err := store.ListStatuses(ctx, &contentapi.ListStatusesRequest{}); err != nil || len(left.GetStatuses()) > 0 {
		t.Errorf("ingests left: %v, error %v", left, err)
	}
}

// endlessImport is a client that has sent its options.
type endlessImport struct {
	importStream
	ctx context.Context
}

func (s endlessImport) Context() context.Context { return s.ctx }

func (s endlessImport) Recv() (*api.ImportRequest, error) {
	return &api.ImportRequest{Part: &api.ImportRequest_Options{Options: &api.ImportOptions{}}}, nil
}

// An import that panics, which costs the call and not the daemon, leaves
// nothing at work.
func TestImportThatPanics(t *testing.T) {
	leak.CheckProcess(t)
	defer func() {
		if recover() == nil {
			t.Error("the test wants a panic")
		}
	}()
	ctx := withScope(grpcmetadata.NewIncomingContext(t.Context(), grpcmetadata.Pairs(namespaceHeader, "ns")))
	t.Error((&importService{}).Import(endlessImport{ctx: ctx}))
}
