package scenario

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func gcScenario() *Scenario {
	return &Scenario{
		Name:   "gc",
		Title:  "Deletion of all images with everything they hold, the last one synchronously, while another client creates containers",
		Rounds: once,
		Setup:  func(ctx context.Context, r *Run) error { return r.gcFill(ctx) },
		Round:  func(ctx context.Context, r *Run, round int) error { return r.gcMeasure(ctx) },
	}
}

// gcState is what gcFill made.
type gcState struct {
	images []string
}

// gcFill makes images that each hold a manifest blob, which refers to further
// blobs and to a snapshot by garbage collection labels.
func (r *Run) gcFill(ctx context.Context) error {
	lease, err := r.D.Client.LeasesService().Create(ctx, leases.WithID("gc-fill"), leases.WithExpiration(time.Hour))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	leased := leases.WithLease(ctx, lease.ID)
	begin := time.Now()

	nSnap, nImg := r.P.GCSnapshots, r.P.GCImages
	if err := parallel(16, nSnap, func(i int) error { return r.gcSnapshot(leased, i) }); err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	r.addRate("fill: snapshots prepared+committed, 16 parallel", nSnap, time.Since(begin))

	begin = time.Now()
	extra := r.P.GCBlobs - nImg
	extras := make([]v1.Descriptor, extra)
	if err := parallel(16, extra, func(i int) (err error) {
		extras[i], err = r.gcBlob(leased, fmt.Sprintf("layer %d", i), nil)
		return err
	}); err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	manifests := make([]v1.Descriptor, nImg)
	if err := parallel(16, nImg, func(i int) (err error) {
		labels := map[string]string{}
		for k := i; k < extra; k += nImg {
			labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", k)] = extras[k].Digest.String()
		}
		for k := i; k < nSnap; k += nImg {
			labels[fmt.Sprintf("containerd.io/gc.ref.snapshot.%s/%d", r.D.Config.Snapshotter, k)] = gcSnapshotName(k)
		}
		manifests[i], err = r.gcBlob(leased, fmt.Sprintf("manifest %d", i), labels)
		return err
	}); err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	r.addRate("fill: small blobs written, 16 parallel", r.P.GCBlobs, time.Since(begin))

	st := &gcState{images: make([]string, nImg)}
	begin = time.Now()
	if err := parallel(16, nImg, func(i int) error {
		st.images[i] = fmt.Sprintf("bench.invalid/gc:%d", i)
		_, err := r.D.Client.ImageService().Create(leased, images.Image{Name: st.images[i], Target: manifests[i]})
		return err
	}); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	r.addRate("fill: images created, 16 parallel", nImg, time.Since(begin))
	r.State = st
	if err := r.D.Client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		return err
	}
	return r.gcCount(ctx, "before", r.P.GCBlobs, nSnap)
}

func gcSnapshotName(i int) string { return fmt.Sprintf("gc-snap-%d", i) }

func (r *Run) gcSnapshot(ctx context.Context, i int) error {
	sn := r.snapshotter()
	key := fmt.Sprintf("gc-active-%d", i)
	if _, err := sn.Prepare(ctx, key, ""); err != nil {
		return err
	}
	return sn.Commit(ctx, gcSnapshotName(i), key)
}

func (r *Run) gcBlob(ctx context.Context, text string, labels map[string]string) (v1.Descriptor, error) {
	data := fmt.Appendf(nil, `{"bench":%q}`, text)
	d := v1.Descriptor{MediaType: "application/vnd.bench.blob", Digest: digest.FromBytes(data), Size: int64(len(data))}
	var opts []content.Opt
	if labels != nil {
		opts = append(opts, content.WithLabels(labels))
	}
	return d, content.WriteBlob(ctx, r.D.Client.ContentStore(), "gc-"+d.Digest.Encoded(), bytes.NewReader(data), d, opts...)
}

// gcCount checks how much content and how many snapshots there are.
func (r *Run) gcCount(ctx context.Context, when string, wantBlobs, wantSnaps int) error {
	blobs, snaps := 0, 0
	if err := r.D.Client.ContentStore().Walk(ctx, func(content.Info) error { blobs++; return nil }); err != nil {
		return fmt.Errorf("content walk: %w", err)
	}
	if err := r.snapshotter().Walk(ctx, func(context.Context, snapshots.Info) error { snaps++; return nil }); err != nil {
		return fmt.Errorf("snapshot walk: %w", err)
	}
	if blobs != wantBlobs || snaps != wantSnaps {
		return fmt.Errorf("%s the deletion there are %d blobs and %d snapshots, not %d and %d", when, blobs, snaps, wantBlobs, wantSnaps)
	}
	return nil
}

// stall measures a concurrent client's container creations.
type stall struct {
	mu    sync.Mutex
	calls []time.Duration
}

func (s *stall) longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m time.Duration
	for _, d := range s.calls {
		m = max(m, d)
	}
	return m
}

// creator creates containers one after the other until ctx ends.
func (r *Run) creator(ctx context.Context, stop <-chan struct{}, s *stall) error {
	recs, err := r.records(200)
	if err != nil {
		return err
	}
	store := r.D.Client.ContainerService()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		rec := recs[i%len(recs)]
		rec.ID = fmt.Sprintf("%s-%d", rec.ID, i)
		begin := time.Now()
		if _, err := store.Create(ctx, rec); err != nil {
			return fmt.Errorf("create during gc: %w", err)
		}
		s.mu.Lock()
		s.calls = append(s.calls, time.Since(begin))
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

func (r *Run) gcMeasure(ctx context.Context) error {
	st := r.State.(*gcState)
	stop := make(chan struct{})
	done := make(chan error, 1)
	var s stall
	go func() { done <- r.creator(ctx, stop, &s) }()

	store := r.D.Client.ImageService()
	last := len(st.images) - 1
	begin := time.Now()
	for _, name := range st.images[:last] {
		if err := store.Delete(ctx, name); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	sync := time.Now()
	if err := store.Delete(ctx, st.images[last], images.SynchronousDelete()); err != nil {
		return fmt.Errorf("synchronous delete: %w", err)
	}
	end := time.Now()
	close(stop)
	if err := <-done; err != nil {
		return err
	}
	r.seconds("delete all images, last one synchronous", end.Sub(begin))
	r.seconds("last synchronous delete alone", end.Sub(sync))
	r.addMs("longest containers.Create meanwhile", s.longest())
	s.mu.Lock()
	for _, d := range s.calls {
		r.S.Add(r.Label, "containers.Create meanwhile", "ms", report.Lower, float64(d.Nanoseconds())/1e6)
	}
	s.mu.Unlock()
	return r.gcCount(ctx, "after", 0, 0)
}
