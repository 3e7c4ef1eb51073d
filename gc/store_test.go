package gc

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// TestRealStore has a real database collected on the bubble's clock: a lease of
// ten seconds goes soon after it ends, and takes with it what it held.
func TestRealStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		blobs, err := content.Open(filepath.Join(dir, "content"))
		if err != nil {
			t.Fatal(err)
		}
		db, err := metadata.Open(t.Context(), metadata.Options{Path: filepath.Join(dir, "meta.db"), Content: blobs})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- (&Scheduler{Store: db}).Run(ctx) }()
		defer func() {
			cancel()
			if err := errors.Join(<-done, db.Close(), blobs.Close()); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(time.Second) // the run at the start is over

		s := metadata.Scope{Namespace: "ns", Lease: "l"}
		ends := time.Now().Add(10 * time.Second).Format(time.RFC3339)
		if _, err := db.Leases(s).Create(ctx, "l", map[string]string{labels.GCExpire: ends}); err != nil {
			t.Fatal(err)
		}
		w, err := db.Blobs(s).Writer(ctx, "ref", content.Expect{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(ctx, 0, "", nil); err != nil {
			t.Fatal(err)
		}
		count := func() int {
			t.Helper()
			all, err := db.Blobs(s).List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		time.Sleep(9 * time.Second)
		if count() != 1 {
			t.Error("it went before its lease ended")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if count() != 0 {
			t.Error("it is there after its lease ended")
		}
		for range blobs.All(ctx) {
			t.Error("its bytes are there")
		}
	})
}
