package metadata

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
)

// TestLeaseResources: which types there are, that what is held need not be there,
// and that an unknown lease is NotFound whatever is asked of it.
func TestLeaseResources(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	l := w.Leases(s)
	w.must(second(l.Create(bg, "l", nil)))
	if _, err := l.Create(bg, "l", nil); result(err) != "already_exists" {
		t.Error(err)
	}
	w.events.take()
	d := digest.FromString("nowhere").String()
	for _, c := range []struct{ kind, id, want string }{
		{"content", d, "ok"}, {"ingests", "any ref", "ok"}, {"images", "any name", "ok"}, {"snapshots/native", "any key", "ok"}, {"snapshots/unknown", "k", "ok"},
		{"content", "abc", "invalid_argument"}, {"content", "sha256:zz", "invalid_argument"}, {"content/x", d, "invalid_argument"},
		{"snapshots", "k", "invalid_argument"}, {"snapshots/", "k", "invalid_argument"}, {"snapshots/a/b", "k", "invalid_argument"},
		{"ingests/x", "r", "invalid_argument"}, {"images/x", "i", "invalid_argument"}, {"images", "", "invalid_argument"},
		{"containers", "c", "unimplemented"}, {"", "x", "unimplemented"}, {"streams", "x", "unimplemented"},
	} {
		r := &leases.Resource{Type: c.kind, Id: c.id}
		for what, err := range map[string]error{"delete of what is not held": l.DeleteResource(bg, "l", r), "add": l.AddResource(bg, "l", r)} {
			if result(err) != c.want {
				t.Errorf("%s %q %q: %v, want %s", what, c.kind, c.id, err, c.want)
			}
		}
	}
	held, err := l.ListResources(bg, "l")
	if err != nil || len(held) != 5 {
		t.Errorf("%v, %v", held, err)
	}
	r := &leases.Resource{Type: "content", Id: d}
	for what, err := range map[string]error{
		"add": l.AddResource(bg, "none", r), "delete": l.DeleteResource(bg, "none", r), "list": second(l.ListResources(bg, "none")), "end": l.Delete(bg, "none"),
	} {
		if result(err) != "not_found" {
			t.Errorf("%s of an unknown lease: %v", what, err)
		}
	}
	w.must(l.Delete(bg, "l"))
	if events := w.events.take(); len(events) > 0 {
		t.Errorf("leases published %q", events)
	}
}

// TestLeasesHold compares what collections leave as leases hold, expire and go.
func TestLeasesHold(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	l := w.Leases(s)
	soon := w.options.Now().Add(time.Hour).Format(time.RFC3339)
	child := w.blob(s, "child", map[string]string{labels.GCRoot: "1"})
	parent := w.blob(s, "parent", map[string]string{labels.GCRoot: "1", labels.GCRefContent + ".l.0": child.String()})
	native := w.snapshotter(s, "native")
	w.layer(native, "base", "", map[string]string{labels.GCRoot: "1"})
	w.layer(native, "top", "base", map[string]string{labels.GCRoot: "1", labels.GCRefContent: parent.String()})
	for id, given := range map[string]map[string]string{
		"plain": nil, "flat": {labels.GCFlat: "any"}, "ends": {labels.GCExpire: soon},
		"refers": {labels.GCRefContent + "/x": child.String(), labels.GCRefSnapshot + "native": "base"},
	} {
		w.must(second(l.Create(bg, id, given)))
	}
	add := func(lease, kind, id string) { w.must(l.AddResource(bg, lease, &leases.Resource{Type: kind, Id: id})) }
	add("plain", "content", parent.String())
	add("flat", "snapshots/native", "top")
	add("ends", "snapshots/native", "top")
	// From here on leases alone keep anything.
	unroot := func() {
		w.must(w.Update(bg, func(tx *Tx) error {
			for _, d := range []digest.Digest{child, parent} {
				row, err := blobTable.Get(tx, "ns", d.String())
				if err != nil {
					return err
				}
				delete(row.Labels, labels.GCRoot)
				if err := blobTable.Update(tx, "ns", d.String(), row); err != nil {
					return err
				}
			}
			for _, key := range []string{"base", "top"} {
				row, err := snapshotTable.Get(tx, "ns", path("native", key))
				if err != nil {
					return err
				}
				delete(row.Info.Labels, labels.GCRoot)
				if err := snapshotTable.Update(tx, "ns", path("native", key), row); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	unroot()
	left := func(want ...string) {
		t.Helper()
		w.collect()
		if diff := cmp.Diff(append([]string{}, want...), w.left(s)); diff != "" {
			t.Error(diff)
		}
	}
	left("content:child", "content:parent", "lease:ends", "lease:flat", "lease:plain", "lease:refers", "snapshot:base", "snapshot:top")
	w.must(l.Delete(bg, "plain"))
	// The lease that ends follows the label of top.
	left("content:child", "content:parent", "lease:ends", "lease:flat", "lease:refers", "snapshot:base", "snapshot:top")
	w.clock += 2 * time.Hour
	// The flat one does not, but keeps top's parent; the one with labels follows its own.
	left("content:child", "lease:flat", "lease:refers", "snapshot:base", "snapshot:top")
	w.must(l.Delete(bg, "flat"))
	left("content:child", "lease:refers", "snapshot:base")
	w.must(l.Delete(bg, "refers"))
	left()
}

// TestImagesExpire: an image ends by its label, unless a lease holds it; what
// refers back to a container, an image or a snapshot lives as long as that.
func TestImagesExpire(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	l := w.Leases(s)
	w.must(second(l.Create(bg, "l", nil)))
	c := testContainer("c")
	w.must(second(w.Containers(s).Create(bg, c)))
	d := w.blob(s, "target", map[string]string{labels.GCBackRefContainer + ".x": "c"})
	image := testImage("i", d)
	image.Labels = map[string]string{labels.GCExpire: w.options.Now().Add(time.Hour).Format(time.RFC3339)}
	w.must(second(w.Images(Scope{"ns", "l"}).Create(bg, image, nil)))
	w.blob(s, "of the image", map[string]string{labels.GCBackRefImage: "i"})
	w.layer(w.snapshotter(s, "native"), "n", "", map[string]string{labels.GCBackRefContent: d.String()})
	w.blob(s, "of the snapshot", map[string]string{labels.GCBackRefSnapshot + "native/x": "n"})
	left := func(want ...string) {
		t.Helper()
		w.collect()
		if diff := cmp.Diff(append([]string{}, want...), w.left(s)); diff != "" {
			t.Error(diff)
		}
	}
	all := []string{"container:c", "content:of the image", "content:of the snapshot", "content:target", "image:i", "lease:l", "snapshot:n"}
	left(all...)
	w.clock += 2 * time.Hour
	left(all...) // the lease holds the image
	w.must(l.Delete(bg, "l"))
	w.events.take()
	left("container:c", "content:of the snapshot", "content:target", "snapshot:n")
	if events := w.events.take(); len(events) != 1 || events[0] != "ns /images/delete i" {
		t.Errorf("published %q", events)
	}
	w.must(w.Containers(s).Delete(bg, "c"))
	left()
}
