package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/types"
)

// fillUp takes all room that there is, and gives what has taken it.
func fillUp(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "hog")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// write sends up to n bytes to a ref and commits them.
func write(ctx context.Context, c contentgrpc.ContentClient, ref string, n int64) (string, error) {
	s, err := c.Write(ctx)
	if err != nil {
		return "", err
	}
	for offset := int64(0); ; offset += 1 << 20 {
		r := &content.WriteContentRequest{Ref: ref, Action: content.WriteAction_WRITE, Offset: offset, Data: make([]byte, min(1<<20, n-offset))}
		if offset+1<<20 >= n {
			r.Action = content.WriteAction_COMMIT
		}
		if err := s.Send(r); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		a, err := s.Recv()
		if err != nil || r.Action == content.WriteAction_COMMIT {
			return a.GetDigest(), err
		}
	}
}

// TestFullDisk: a root on a full disk is told as such, at the start and by the
// call that finds no room. Nothing half done stays, and removing, collecting,
// stopping and starting go on.
func TestFullDisk(t *testing.T) {
	p := newPlace(t)
	if err := os.Mkdir(p.root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", p.root, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.root, 0); err != nil {
			t.Error(err)
		}
	})
	if said := fails(t, command(t.Context(), t, p.args()...)); !strings.Contains(said, "no space left on device") || !strings.Contains(said, p.root) {
		t.Errorf("it said %q", said)
	}
	if err := unix.Mount("", p.root, "", unix.MS_REMOUNT, "size=24m"); err != nil {
		t.Fatal(err)
	}
	r := p.start(t)
	ctx := grpcmetadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "ns")
	fillWithImages(ctx, t, r)
	fillUp(t, p.root)
	for range 2 {
		_, err := write(ctx, contentgrpc.NewContentClient(r), "r", 64<<20)
		saysFull(t, err, p.root)
		list, err := contentgrpc.NewContentClient(r).ListStatuses(ctx, &content.ListStatusesRequest{})
		if err != nil || len(list.GetStatuses()) > 0 {
			t.Errorf("ingests left: %v, %v", list, err)
		}
	}
	_, err := containersgrpc.NewContainersClient(r).Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "large", Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"}, Spec: &anypb.Any{TypeUrl: "spec", Value: make([]byte, 1<<20)},
	}})
	saysFull(t, err, p.root)
	if err := r.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	r = p.start(t)
	emptyOut(ctx, t, r, p.root)
	if err := r.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// saysFull fails the test unless a call said whose disk is full.
func saysFull(t *testing.T, err error, root string) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != codes.ResourceExhausted || !strings.HasSuffix(st.Message(), "no space left on device: resource exhausted") || !strings.Contains(st.Message(), root) {
		t.Errorf("a full disk: %v", err)
	}
}

// fillWithImages makes images of a blob each.
func fillWithImages(ctx context.Context, t *testing.T, r *running) {
	t.Helper()
	l, err := leasesgrpc.NewLeasesClient(r).Create(ctx, &leases.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	leased := grpcmetadata.AppendToOutgoingContext(ctx, "containerd-lease", l.GetLease().GetId())
	for i := range 8 {
		d, err := write(leased, contentgrpc.NewContentClient(r), fmt.Sprint(i), int64(1<<20+i))
		if err != nil {
			t.Fatal(err)
		}
		_, err = imagesgrpc.NewImagesClient(r).Create(leased, &images.CreateImageRequest{Image: &images.Image{
			Name: fmt.Sprint("image", i), Target: &types.Descriptor{MediaType: "x", Digest: d, Size: int64(1<<20 + i)},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := leasesgrpc.NewLeasesClient(r).Delete(ctx, &leases.DeleteRequest{Id: l.GetLease().GetId()}); err != nil {
		t.Fatal(err)
	}
}

// emptyOut removes image after image from a disk that is filled up each time,
// and has a collection run as clients do: by a lease that is made to be deleted.
func emptyOut(ctx context.Context, t *testing.T, r *running, root string) {
	t.Helper()
	var free unix.Statfs_t
	for i := range 8 {
		if _, err := imagesgrpc.NewImagesClient(r).Delete(ctx, &images.DeleteImageRequest{Name: fmt.Sprint("image", i)}); err != nil {
			t.Fatal(err)
		}
		l, err := leasesgrpc.NewLeasesClient(r).Create(ctx, &leases.CreateRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leasesgrpc.NewLeasesClient(r).Delete(ctx, &leases.DeleteRequest{Id: l.GetLease().GetId(), Sync: true}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Statfs(root, &free); err != nil {
			t.Fatal(err)
		}
		if n := int64(free.Bavail) * free.Bsize; n < 1<<20 {
			t.Errorf("image %d is gone and %d bytes are free", i, n)
		}
		fillUp(t, root)
	}
	blobs, err := os.ReadDir(filepath.Join(root, contentDir, "blobs", "sha256"))
	if err != nil || len(blobs) > 0 {
		t.Errorf("blobs left: %v, %v", blobs, err)
	}
}
