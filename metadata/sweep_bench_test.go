package metadata

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

// fillImages makes images, each with its share of blobs and snapshots below it,
// the way a pull leaves them, but without the flushes.
func fillImages(t testing.TB, w *world, s Scope, images, blobs, layers int) {
	t.Helper()
	native := w.snapshotter(s, "native")
	per, deep := blobs/images-1, layers/images
	for from := 0; from < images; from += 100 {
		w.must(w.Update(bg, func(tx *Tx) error {
			tree := native.tree(tx)
			for i := from; i < min(from+100, images); i++ {
				given := map[string]string{}
				add := func(text string, given map[string]string) (digest.Digest, error) {
					d := digest.FromString(text)
					info := contentInfo(d)
					info.Labels = given
					if err := os.WriteFile(filepath.Join(w.dir, "content/blobs/sha256", d.Encoded()), []byte(text), 0o444); err != nil {
						return d, err
					}
					return d, blobTable.Create(tx, s.Namespace, d.String(), info)
				}
				for n := range per {
					d, err := add(fmt.Sprint(s.Namespace, "blob", i, "-", n), nil)
					if err != nil {
						return err
					}
					given[fmt.Sprint(labels.GCRefContent, ".l.", n)] = d.String()
				}
				parent := ""
				for n := range deep {
					id, land := native.driver.takeID()
					land()
					name := fmt.Sprint("layer", i, "-", n)
					var parents []snapshots.ID
					err := os.Mkdir(filepath.Join(w.dir, "native", id.String()), 0o700)
					if err == nil {
						parents, err = tree.CheckCreate(name+"k", parent, nil)
					}
					if err == nil {
						err = tree.Create(snapshots.Row{ID: id, Kind: snapshots.Active, Name: name + "k", Parent: parent}, parents)
					}
					if err == nil {
						_, err = tree.Commit(name+"k", "", snapshots.Row{ID: id, Name: name})
					}
					if err != nil {
						return err
					}
					parent = name
				}
				given[labels.GCRefSnapshot+"native"] = parent
				d, err := add(fmt.Sprint(s.Namespace, "manifest", i), given)
				if err != nil {
					return err
				}
				name := fmt.Sprint("image", i)
				if err := imageTable.Create(tx, s.Namespace, name, testImage(name, d)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// beside runs callers that write and read until stop is called, which gives how
// long each call took.
func beside(t testing.TB, w *world, s Scope, callers int) (stop func() []time.Duration) {
	t.Helper()
	var done atomic.Bool
	var group sync.WaitGroup
	took := make([][]time.Duration, callers)
	for n := range callers {
		group.Go(func() {
			for i := 0; !done.Load(); i++ {
				id := fmt.Sprintf("lease-%d-%d", n, i)
				for _, call := range []func() error{
					func() error { return second(w.Leases(s).Create(bg, id, nil)) },
					func() error { return second(w.Containers(s).List(bg)) },
					func() error { return w.Leases(s).Delete(bg, id) },
				} {
					start := time.Now()
					if err := call(); err != nil {
						t.Error(err)
					}
					took[n] = append(took[n], time.Since(start))
				}
			}
		})
	}
	return func() (all []time.Duration) {
		done.Store(true)
		group.Wait()
		for _, part := range took {
			all = append(all, part...)
		}
		return all
	}
}

// benchDir is a directory in memory, or where the environment has it.
func benchDir(b testing.TB) string {
	b.Helper()
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("BERTH_BENCH_DIR"), "/dev/shm"), "berth-sweep-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// slow gives the duration that one call in a thousand exceeds.
func slow(calls []time.Duration) time.Duration {
	slices.Sort(calls)
	if len(calls) == 0 {
		return 0
	}
	return calls[len(calls)*999/1000]
}

// BenchmarkSweep collects 1,000 images, 5,000 blobs and 2,000 snapshots among as
// many that stay.
func BenchmarkSweep(b *testing.B) {
	for _, callers := range []int{0, 4} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			w := newWorldIn(b, benchDir(b), func(o *Options) {
				o.Drivers["native"].(*testDriver).lazy = true // as those of package snapshots are
			})
			defer w.close()
			s := Scope{Namespace: "ns"}
			fillImages(b, w, Scope{Namespace: "stays"}, 1000, 5000, 2000)
			var during, without []time.Duration
			var own time.Duration
			for b.Loop() {
				b.StopTimer()
				fillImages(b, w, s, 1000, 5000, 2000)
				w.must(w.Update(bg, func(tx *Tx) error { return tx.deletePrefix(imageTable.bucket, path(s.Namespace, "")) }))
				stop := beside(b, w, Scope{Namespace: "others"}, callers)
				b.StartTimer()
				r := w.collect()
				b.StopTimer()
				during = append(during, stop()...)
				own = max(own, r.LongestStall)
				// The same calls for as long without a collection.
				stop = beside(b, w, Scope{Namespace: "others"}, callers)
				time.Sleep(r.Duration)
				without = append(without, stop()...)
				if r.Content != 5000 || r.Snapshots != 2000 {
					b.Fatalf("%+v", r)
				}
				w.settled()
				b.StartTimer()
			}
			b.ReportMetric(float64(slow(during))/1e6, "p99.9-ms")
			b.ReportMetric(float64(own)/1e6, "longest-stall-ms")
			b.ReportMetric(float64(slow(without))/1e6, "p99.9-without-ms")
		})
	}
}
