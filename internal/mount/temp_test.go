package mount

import (
	"context"
	"os"
	"sync"
	"testing"
)

// TestWithTempBesideSweeps: daemons that start, each with a sweep, are not in
// the way of what mounts at the same moment.
func TestWithTempBesideSweeps(t *testing.T) {
	scratch(t)
	t.Setenv("TMPDIR", t.TempDir())
	stop := make(chan struct{})
	var sweeps sync.WaitGroup
	for range 2 {
		sweeps.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := SweepTemp(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 100 {
		err := WithTemp(context.Background(), []Mount{tmpfs}, func(root string) error { return os.WriteFile(root+"/f", nil, 0o600) })
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	sweeps.Wait()
	if entries, _ := os.ReadDir(os.TempDir()); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}
