package images

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
)

func TestUnpack(t *testing.T) {
	w := newWorld(t)
	image := small(t, "demo", here)
	made := w.mustImport(archiveOf(t, layout(t, testimage.Zstd, image)), ImportOptions{NoUnpack: true})
	if made.ChainID != "" || len(w.snapshots("overlayfs")) != 0 {
		t.Fatalf("unpacked: %+v", made)
	}
	for _, name := range []string{"overlayfs", "native"} {
		for range 2 {
			chain, err := w.Unpack(bg, scope, made.Target, UnpackOptions{Snapshotter: name}, nil)
			if err != nil || chain != ChainID([]digest.Digest{digest.FromBytes(image.Layers[0]), digest.FromBytes(image.Layers[1])}) {
				t.Fatal(chain, err)
			}
			w.collect()
			w.look(name, chain.String(), func(root string) {
				wantFile(t, root+"/etc/new", "2")
				wantFile(t, root+"/etc/gone", "")
			})
		}
		sn, err := w.db.Snapshotter(scope, name)
		if err != nil {
			t.Fatal(err)
		}
		below := digest.FromBytes(image.Layers[0]).String()
		info, err := sn.Stat(bg, ChainID([]digest.Digest{digest.FromBytes(image.Layers[0]), digest.FromBytes(image.Layers[1])}).String())
		if err != nil || info.Parent != below || info.Labels[labels.SnapshotParent] != below ||
			info.Labels[labels.SnapshotDiffID] != digest.FromBytes(image.Layers[1]).String() || info.Labels[labels.SnapshotRef] != info.Name {
			t.Errorf("%+v, %v", info, err)
		}
	}
	for name, tc := range map[string]struct {
		target ocispec.Descriptor
		o      UnpackOptions
		want   error
	}{
		"unknown":     {ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("none"), Size: 1}, UnpackOptions{}, errdefs.ErrNotFound},
		"no digest":   {ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "x"}, UnpackOptions{}, errdefs.ErrInvalidArgument},
		"no image":    {ocispec.Descriptor{MediaType: "text/plain", Digest: made.Target.Digest}, UnpackOptions{}, errdefs.ErrInvalidArgument},
		"platform":    {made.Target, UnpackOptions{Platform: "linux/s390x"}, errdefs.ErrNotFound},
		"snapshotter": {made.Target, UnpackOptions{Snapshotter: "none"}, errdefs.ErrInvalidArgument},
	} {
		if chain, err := w.Unpack(bg, scope, tc.target, tc.o, nil); chain != "" || !errors.Is(err, tc.want) {
			t.Errorf("%s: %s, %v", name, chain, err)
		}
	}
	if leases, err := w.db.Leases(scope).List(bg); err != nil || len(leases) != 0 {
		t.Errorf("%v, %v", leases, err)
	}
}

// TestUnpackUnderLease: what the caller's lease holds lasts as long as it.
func TestUnpackUnderLease(t *testing.T) {
	w := newWorld(t)
	lease, err := w.db.Leases(scope).Create(bg, "mine", nil)
	if err != nil {
		t.Fatal(err)
	}
	held := metadata.Scope{Namespace: scope.Namespace, Lease: lease.Id}
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here)))
	for range 2 { // made, and found
		if _, err := w.Import(bg, held, bytes.NewReader(archive), ImportOptions{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.db.Images(scope).Delete(bg, "docker.io/library/demo:latest", nil); err != nil {
		t.Fatal(err)
	}
	w.collect()
	if len(w.snapshots("overlayfs")) != 2 || len(w.content()) != 4 {
		t.Errorf("%v %v", w.snapshots("overlayfs"), w.content())
	}
	if err := w.db.Leases(scope).Delete(bg, lease.Id); err != nil {
		t.Fatal(err)
	}
	w.empty()
}

// TestUnpackAtOnce: many unpackings of the same layers, some with more on top,
// meet: each layer is unpacked once.
func TestUnpackAtOnce(t *testing.T) {
	w := newWorld(t)
	one, two := small(t, "one", here), small(t, "two", here)
	two.Layers = append(two.Layers, layer(t, testimage.File{Name: "two", Body: "2"}))
	made, err := w.Import(bg, scope, bytes.NewReader(archiveOf(t, layout(t, testimage.Gzip, one, two))), ImportOptions{NoUnpack: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var (
		done    sync.WaitGroup
		mu      sync.Mutex
		applied []string
	)
	for i := range 12 {
		done.Go(func() {
			_, err := w.Unpack(bg, scope, made[i%2].Target, UnpackOptions{}, func(p Progress) {
				if p.Status == Unpacking && p.Offset == p.Total {
					mu.Lock()
					defer mu.Unlock()
					applied = append(applied, p.Digest.String())
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	slices.Sort(applied)
	if len(applied) != 3 || len(slices.Compact(applied)) != 3 {
		t.Errorf("unpacked: %s", strings.Join(applied, " "))
	}
	if all := w.snapshots("overlayfs"); len(all) != 3 {
		t.Errorf("snapshots: %v", all)
	}
	if len(w.layers.under) != 0 {
		t.Errorf("%d flights are left", len(w.layers.under))
	}
}
