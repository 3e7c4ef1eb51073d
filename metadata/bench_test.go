package metadata

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
)

// fillContainers makes n records of the size that a run makes.
func fillContainers(b testing.TB, db *DB, s Scope, n int) {
	b.Helper()
	spec := make([]byte, 6<<10)
	for from := 0; from < n; from += 1000 {
		err := db.Update(bg, func(tx *Tx) error {
			for i := from; i < min(from+1000, n); i++ {
				c := testContainer(fmt.Sprintf("c%05d", i))
				c.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: spec}
				c.Labels = map[string]string{"io.kubernetes.pod.name": "pod", "io.kubernetes.pod.namespace": "default", "n": fmt.Sprint(i)}
				c.Image, c.Snapshotter, c.SnapshotKey = "docker.io/library/busybox:latest", "overlayfs", c.Id
				if err := containerTable.Create(tx, s.Namespace, c.Id, c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkContainers(b *testing.B) {
	w := newWorld(b)
	s := Scope{Namespace: "ns"}
	fillContainers(b, w.DB, s, 10000)
	for name, call := range map[string]func() (int, error){
		"list": func() (int, error) {
			all, err := w.Containers(s).List(bg)
			return len(all), err
		},
		"stored": func() (int, error) {
			all, err := w.Containers(s).Stored(bg)
			return len(all), err
		},
		"list one of 10000 by label": func() (int, error) {
			all, err := w.Containers(s).List(bg, "labels.n==77")
			return len(all) * 10000, err
		},
		"get": func() (int, error) {
			_, err := w.Containers(s).Get(bg, "c00077")
			return 10000, err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n, err := call(); err != nil || n != 10000 {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkCollect(b *testing.B) {
	w := newWorldIn(b, b.TempDir())
	defer w.close()
	s := Scope{Namespace: "ns"}
	fillContainers(b, w.DB, s, 10000)
	fill(b, w.DB, s, 10000, 0)
	var stall, duration int64
	for b.Loop() {
		r := w.collect()
		stall, duration = max(stall, int64(r.LongestStall)), duration+int64(r.Duration)
	}
	b.ReportMetric(float64(stall), "longest-stall-ns")
}
