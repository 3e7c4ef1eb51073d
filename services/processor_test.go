package services

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	diffapi "github.com/berthd/berth/api/services/diff/v1"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/testimage"
)

// TestApplyThroughProcessor: a layer of a media type that a program was configured
// for goes through it, with the payload that the request has for it; one whose
// label names a program goes nowhere.
func TestApplyThroughProcessor(t *testing.T) {
	const sealed = "application/vnd.oci.image.layer.v1.tar+sealed"
	program := filepath.Join(t.TempDir(), "unseal")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ngrep -q key /proc/self/fd/3 && exec cat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := start(t, func(c *Config) {
		c.Images.Layers = diff.Options{Processors: []diff.Processor{{
			ID: "unseal", Accepts: []string{sealed}, Returns: "application/vnd.oci.image.layer.v1.tar", Path: program,
		}}}
	})
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
	apply := func(mediaType, payload string) (*diffapi.ApplyResponse, error) {
		return c.Apply(ctx, &diffapi.ApplyRequest{
			Diff: &types.Descriptor{MediaType: mediaType, Digest: blob.String(), Size: int64(len(layer)), Annotations: map[string]string{"processor": program}}, Mounts: p.GetMounts(),
			Payloads: map[string]*anypb.Any{"unseal": {TypeUrl: "example", Value: []byte(payload)}},
		})
	}
	if r, err := apply(sealed, "the key"); err != nil || r.GetApplied().GetDigest() != blob.String() {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := apply(sealed, "another"); err == nil {
		t.Error("a program that fails")
	}
	if _, err := apply("application/vnd.oci.image.layer.v1.tar+other", "the key"); status.Code(err) != codes.Unimplemented {
		t.Errorf("a media type that nothing is configured for: %v", err)
	}
}
