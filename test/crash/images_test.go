package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	berthimages "github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/test/harness"
)

// storePoints are durable steps of blobs, layers and rows.
var storePoints = []string{
	"content.ingest.rename", "content.commit.sync", "content.commit.rename", "content.commit.syncdir", "content.discard.rename",
	"snapshots.create.rename", "snapshots.create.syncdir", "snapshots.flush.syncfs", "snapshots.remove.rename",
	"metadata.commit",
}

// retryPause is between two tries of what a dying daemon interrupts.
const retryPause = 20 * time.Millisecond

// imageCount is how many images there are to pull and import.
const imageCount = 4

// imageWorld is what all of a run share.
type imageWorld struct {
	t        *testing.T
	daemon   *harness.Daemon
	client   *client.Client
	names    []string // at the registry
	archives [][]byte

	// quiet is held for reading by who changes the store, and for writing by who
	// looks whether it is whole.
	quiet sync.RWMutex

	mu     sync.Mutex // guards what follows
	armed  bool
	times  int // that a point was armed
	counts map[string]int
}

func (w *imageWorld) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// TestCrashImages kills the daemon, at any instant and at each durable step, while
// images are pulled, imported and removed. Each time the next one opens the store,
// finds nothing wrong with it and every listed image whole; what was interrupted
// succeeds when it is done again, and in the end nothing is left.
func TestCrashImages(t *testing.T) {
	duration, err := time.ParseDuration(setting("BERTH_CRASH_DURATION", "20s"))
	if err != nil {
		t.Fatal(err)
	}
	var seed uint64
	if _, err := fmt.Sscan(setting("BERTH_CRASH_SEED", fmt.Sprint(time.Now().UnixNano())), &seed); err != nil {
		t.Fatal(err)
	}
	t.Logf("BERTH_CRASH_SEED=%d makes these choices again", seed)
	w := newImageWorld(t, seed)
	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var all sync.WaitGroup
	for n := range 3 {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		all.Go(func() {
			for ctx.Err() == nil {
				w.operate(r)
			}
		})
	}
	all.Go(func() {
		for ctx.Err() == nil {
			w.checkMeanwhile(ctx)
		}
	})
	w.chaos(ctx, rand.New(rand.NewPCG(seed, 1<<32)))
	all.Wait()
	w.end()
	t.Logf("done: %v", w.counts)
}

// newImageWorld starts a daemon and a registry with the images in it.
func newImageWorld(t *testing.T, seed uint64) *imageWorld {
	registry, err := harness.StartRegistry(programs, harness.RegistryOptions{})
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		needed.Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	})
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	w := &imageWorld{t: t, daemon: d, client: connect(t, d), counts: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	for n := range imageCount {
		w.names = append(w.names, fmt.Sprintf("%s/crash/image%d:latest", registry.Host, n))
	}
	layouts, err := harness.RandomImages{Base: 60, Layer: 30, File: 20_000}.Make(rand.New(rand.NewPCG(seed, 1<<40)), w.names...)
	if err != nil {
		t.Fatal(err)
	}
	for n, layout := range layouts {
		var archive bytes.Buffer
		if err := layout.WriteTar(&archive); err != nil {
			t.Fatal(err)
		}
		made, err := w.client.Import(ctx, bytes.NewReader(archive.Bytes()), &berthimages.ImportOptions{NoUnpack: true}, nil)
		if err != nil || len(made) != 1 {
			t.Fatal(made, err)
		}
		got, err := w.client.Images().Get(ctx, &images.GetImageRequest{Name: made[0].GetName()})
		if err == nil {
			err = w.client.Push(ctx, got.GetImage(), w.names[n], client.PushOptions{Registry: client.Registry{PlainHTTP: true}})
		}
		if err == nil {
			_, err = w.client.Images().Delete(ctx, &images.DeleteImageRequest{Name: made[0].GetName()})
		}
		if err != nil {
			t.Fatal(err)
		}
		w.archives = append(w.archives, archive.Bytes())
	}
	return w
}

// operate does one thing, and does it again until it has succeeded.
func (w *imageWorld) operate(r *rand.Rand) {
	n := r.IntN(imageCount)
	what, do := "pulled", func(ctx context.Context) error { return w.pull(ctx, n) }
	switch k := r.IntN(10); {
	case k < 3:
		what, do = "imported", func(ctx context.Context) error { return w.imports(ctx, n) }
	case k < 6:
		what, do = "removed", func(ctx context.Context) error {
			_, err := w.client.Images().Delete(ctx, &images.DeleteImageRequest{Name: w.names[n], Sync: r.IntN(2) == 0})
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
	}
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(retryPause) {
		w.quiet.RLock()
		ctx, cancel := context.WithTimeout(w.t.Context(), callTime)
		armed, times := w.armament()
		err := do(ctx)
		cancel()
		w.quiet.RUnlock()
		if err == nil {
			w.count(what)
			return
		}
		w.count("interrupted")
		if now, then := w.armament(); !armed && !now && times == then && !mayFail(err) {
			w.t.Errorf("%s %s: %v", what, w.names[n], err)
			return
		}
	}
	w.t.Errorf("%s %s: never", what, w.names[n])
}

// mayFail tells whether an error is one of a daemon that died.
func mayFail(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errors.Is(err, io.EOF)
}

// armament tells whether a point is armed, and how often one was.
func (w *imageWorld) armament() (armed bool, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.armed, w.times
}

func (w *imageWorld) pull(ctx context.Context, n int) error {
	_, err := w.client.Pull(ctx, w.names[n], client.PullOptions{Platforms: []string{"linux/amd64"}, Registry: client.Registry{PlainHTTP: true}})
	if errdefs.IsNotFound(err) && strings.HasPrefix(err.Error(), "image ") {
		return nil // another has removed it again
	}
	return err
}

func (w *imageWorld) imports(ctx context.Context, n int) error {
	_, err := w.client.Import(ctx, bytes.NewReader(w.archives[n]), &berthimages.ImportOptions{Platform: "linux/amd64"}, nil)
	return err
}

// chaos kills the daemon at random instants, or has it die at a durable step, and
// looks at the store each time it is there again.
func (w *imageWorld) chaos(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		timer := time.NewTimer(time.Duration(30+r.IntN(1500)) * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		w.count("killed")
		if err := w.daemon.Kill(); err != nil {
			w.count("died at a point")
		}
		w.arm(r, false)
		if err := w.daemon.Start(); err != nil {
			w.t.Errorf("the next daemon: %v", err)
			return
		}
		w.look()
		if r.IntN(2) == 0 {
			w.count("killed")
			if err := w.daemon.Kill(); err != nil {
				w.t.Error(err)
			}
			w.arm(r, true)
			if err := w.daemon.Start(); err != nil { // it may die at once
				w.count("died at a point")
				if err := w.daemon.Kill(); err != nil {
					w.count("died at a point")
				}
				w.arm(r, false)
				if err := w.daemon.Start(); err != nil {
					w.t.Errorf("the next daemon: %v", err)
				}
			}
		}
	}
	if err := w.daemon.Kill(); err != nil {
		w.count("died at a point")
	}
	w.arm(r, false)
	if err := w.daemon.Start(); err != nil {
		w.t.Errorf("the last daemon: %v", err)
	}
}

func (w *imageWorld) arm(r *rand.Rand, arm bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.daemon.Env = arm, nil
	if arm {
		w.times++
		w.daemon.Env = []string{"BERTH_FAULTS=" + storePoints[r.IntN(len(storePoints))] + "=" + fates[r.IntN(len(fates))]}
	}
}

// look has the daemon check everything while nobody changes anything.
func (w *imageWorld) look() {
	w.quiet.Lock()
	defer w.quiet.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := harness.Check(ctx, w.client.Maintenance(), &maintenance.CheckRequest{ReadContent: true, Images: true}); err != nil {
		w.t.Errorf("after a crash: %v", err)
	}
	w.count("checked")
}

// checkMeanwhile has the daemon check, and repair, while all goes on: there is
// nothing to repair.
func (w *imageWorld) checkMeanwhile(ctx context.Context) {
	armed, times := w.armament()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	stream, err := w.client.Maintenance().Check(ctx, &maintenance.CheckRequest{Images: true, Repair: true}, grpc.WaitForReady(true))
	for err == nil {
		var p *maintenance.Problem
		// What was cut off is swept at the start of a daemon, beside the check.
		if p, err = stream.Recv(); err == nil && !p.GetNote() && p.GetKind() == "image" {
			if now, then := w.armament(); armed || now || times != then {
				continue
			}
			w.t.Errorf("meanwhile: %s %s: %s (%s%s)", p.GetKind(), p.GetObject(), p.GetText(), p.GetRepaired(), p.GetFailed())
		}
	}
	w.count("checked meanwhile")
}

// end pulls everything once more, and looks that nothing is left without images.
func (w *imageWorld) end() {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	w.look()
	for n := range imageCount {
		if err := w.pull(ctx, n); err != nil {
			w.t.Errorf("pull %s in the end: %v", w.names[n], err)
		}
	}
	w.look()
	for _, name := range w.names {
		if _, err := w.client.Images().Delete(ctx, &images.DeleteImageRequest{Name: name, Sync: true}); err != nil {
			w.t.Errorf("remove %s in the end: %v", name, err)
		}
	}
	held, err := w.client.Leases().List(ctx, &leases.ListRequest{})
	if err != nil || len(held.GetLeases()) > 0 {
		w.t.Errorf("leases are left: %v, %v", held, err)
	}
	if err := w.daemon.Check(ctx); err != nil {
		w.t.Errorf("check: %v", err)
	}
	left, err := w.client.Content().List(ctx, &content.ListContentRequest{})
	if err == nil {
		var reply *content.ListContentResponse
		for reply, err = left.Recv(); err == nil; reply, err = left.Recv() {
			w.t.Errorf("left: %v", reply.GetInfo())
		}
	}
	if !errors.Is(err, io.EOF) {
		w.t.Error(err)
	}
}
