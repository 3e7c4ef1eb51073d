package images

import (
	"bytes"
	"testing"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
)

// TestSweep: the lease of an import whose daemon was killed ends at the next
// start, and with it what the import had stored. Those of clients stay.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here)))
	var seen []*leases.Lease
	note := func(Progress) {
		if len(seen) == 0 {
			seen = listLeases(t, w)
		}
	}
	made, err := w.Import(bg, scope, bytes.NewReader(archive), ImportOptions{}, note)
	if err != nil || len(seen) != 1 {
		t.Fatalf("%v; leases during the import: %v", err, seen)
	}
	// As if it had been killed on its way: the lease, what it holds, no image.
	all := w.db.Leases(scope)
	for id, given := range map[string]map[string]string{seen[0].Id: seen[0].Labels, "client's": {"a": "b"}} {
		if _, err := all.Create(bg, id, given); err != nil {
			t.Fatal(err)
		}
		if err := all.AddResource(bg, id, &leases.Resource{Type: "content", Id: made[0].Target.Digest.String()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.db.Leases(metadata.Scope{Namespace: "other"}).Create(bg, "", seen[0].Labels); err != nil {
		t.Fatal(err)
	}
	if err := w.db.Images(scope).Delete(bg, made[0].Name, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Sweep(bg); err != nil {
		t.Fatal(err)
	}
	if left := listLeases(t, w); len(left) != 1 || left[0].Id != "client's" {
		t.Errorf("left: %v", left)
	}
	if left, err := w.db.Leases(metadata.Scope{Namespace: "other"}).List(bg); err != nil || len(left) != 0 {
		t.Errorf("left in another namespace: %v, %v", left, err)
	}
	if err := all.Delete(bg, "client's"); err != nil {
		t.Fatal(err)
	}
	w.empty()
}

func listLeases(t *testing.T, w *world) []*leases.Lease {
	t.Helper()
	list, err := w.db.Leases(scope).List(bg)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
