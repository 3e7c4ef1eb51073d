package metadata

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
)

// writesUnderNoLease gives the answer that all such writes have in common.
func writesUnderNoLease(w *world, s Scope) error {
	s.Lease = "none"
	image := testImage("leased", digest.FromString("x"))
	image.Labels = map[string]string{labels.GCExpire: time.Now().Add(time.Hour).Format(time.RFC3339)}
	native := w.snapshotter(s, "native")
	errs := []error{
		second(w.Blobs(s).Writer(bg, "leased", content.Expect{})),
		second(w.Images(s).Create(bg, image, nil)),
		second(native.Prepare(bg, "leased", "", nil)),
		second(native.View(bg, "leased", "com", nil)),
		native.Commit(bg, "leased", "act", "", nil),
	}
	for _, err := range errs[1:] {
		if result(err) != result(errs[0]) {
			return err
		}
	}
	return errs[0]
}

func TestStoreVectors(t *testing.T) {
	var v struct {
		Cases []struct{ Case, Result string }
	}
	readVectors(t, "stores.json", &v)
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	filterWorld(w, s)
	w.must(w.Containers(s).Delete(bg, "c1"))
	c1 := testContainer("c1")
	c1.Snapshotter, c1.SnapshotKey = "native", "k"
	w.must(second(w.Containers(s).Create(bg, c1)))
	cases := storeCases(w, s)
	for _, c := range v.Cases {
		call := cases[c.Case]
		if call == nil {
			t.Errorf("no case %q", c.Case)
			continue
		}
		err := call()
		if result(err) != c.Result {
			t.Errorf("%s: %v, want %s", c.Case, err, c.Result)
		}
		// Clients tell kinds apart by the end of the text.
		if kind := strings.ReplaceAll(c.Result, "_", " "); err != nil && kind != "unimplemented" && !strings.HasSuffix(err.Error(), ": "+kind) {
			t.Errorf("%s: %q does not end in its kind", c.Case, err)
		}
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	w.must(second(w.Namespaces().Create(bg, &namespaces.Namespace{Name: "made"})))
	w.must(second(w.Namespaces().Update(bg, &namespaces.Namespace{Name: "made"})))
	w.must(w.Namespaces().Delete(bg, "made"))
	d := w.blob(s, "x", nil)
	w.must(second(w.Images(s).Create(bg, testImage("i", d), nil)))
	w.must(second(w.Images(s).Update(bg, testImage("i", d), nil, nil)))
	w.must(w.Images(s).Delete(bg, "i", nil))
	w.must(w.Blobs(s).Delete(bg, d))
	w.must(second(w.Containers(s).Create(bg, testContainer("c"))))
	w.must(second(w.Containers(s).Update(bg, testContainer("c"))))
	w.must(w.Containers(s).Delete(bg, "c"))
	w.must(second(native.Prepare(bg, "a", "", nil)))
	w.must(native.Commit(bg, "b", "a", "", nil))
	w.must(second(native.View(bg, "v", "b", nil)))
	w.must(native.Remove(bg, "v"))
	w.must(second(w.Leases(s).Create(bg, "l", nil)))
	w.must(w.Leases(s).Delete(bg, "l"))
	if err := native.Remove(bg, "none"); err == nil {
		t.Error("no error")
	}
	old := testImage("old", d)
	old.Labels = map[string]string{labels.GCExpire: "2001-01-01T00:00:00Z"}
	w.must(second(w.Images(s).Create(bg, old, nil)))
	w.collect()
	want := []string{
		"made /namespaces/create made", "made /namespaces/update made", "made /namespaces/delete made",
		"ns /content/create " + d.String(), "ns /images/create i", "ns /images/update i", "ns /images/delete i",
		"ns /content/delete " + d.String(), "ns /containers/create c", "ns /containers/update c", "ns /containers/delete c",
		"ns /snapshot/prepare a", "ns /snapshot/commit b", "ns /snapshot/remove v",
		"ns /images/create old", "ns /images/delete old", "ns /snapshot/remove b",
	}
	if diff := cmp.Diff(want, w.events.take()); diff != "" {
		t.Error(diff)
	}
}

func TestTimesAndMasks(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	epoch := timestamppb.New(time.Unix(1000, 0))
	i := testImage("i", digest.FromString("x"))
	i.CreatedAt = timestamppb.Now()
	i.Target.Annotations["empty"] = ""
	got, err := w.Images(s).Create(bg, i, epoch)
	w.must(err)
	if got.CreatedAt.Seconds != 1000 || got.UpdatedAt.Seconds != 1000 || len(got.Target.Annotations) != 1 {
		t.Errorf("%v", got)
	}
	i.Target.Annotations = map[string]string{"an": "", "b": "c"}
	got, err = w.Images(s).Update(bg, i, []string{"annotations.an", "annotations.b"}, nil)
	w.must(err)
	if got.CreatedAt.Seconds != 1000 || got.UpdatedAt.Seconds == 1000 || !cmp.Equal(got.Target.Annotations, map[string]string{"b": "c"}) {
		t.Errorf("%v", got)
	}

	c := testContainer("c")
	c.Extensions = map[string]*anypb.Any{"a.b/c": {TypeUrl: "x"}, "d": {TypeUrl: "y"}}
	w.must(second(w.Containers(s).Create(bg, c)))
	c.Extensions = map[string]*anypb.Any{"a.b/c": {TypeUrl: "z"}}
	c.Image = "ignored"
	stored, err := w.Containers(s).Update(bg, c, "extensions.a.b/c", "extensions.d")
	w.must(err)
	if len(stored.Extensions) != 1 || stored.Extensions["a.b/c"].TypeUrl != "z" || stored.Image != "" {
		t.Errorf("%v", stored)
	}
	if again, err := w.Containers(s).Get(bg, "c"); err != nil || !cmp.Equal(again.String(), stored.String()) {
		t.Errorf("%v, %v; want %v", again, err, stored)
	}
}

func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	none, err := w.Namespaces().Get(bg, "unknown")
	if err != nil || none.Name != "unknown" || len(none.Labels) != 0 {
		t.Errorf("%v, %v", none, err)
	}
	if err := second(w.Namespaces().Update(bg, &namespaces.Namespace{Name: "a"}, "labels")); result(err) != "invalid_argument" {
		t.Error(err)
	}
	a := Scope{Namespace: "a"}
	w.must(second(w.Leases(a).Create(bg, "l", nil)))
	d := w.blob(Scope{"a", "l"}, "x", nil)
	writer, err := w.Blobs(Scope{"a", "l"}).Writer(bg, "r", content.Expect{})
	w.must(err)
	w.must(writer.Close())
	for _, what := range []string{"content", "snapshot", "image", "container"} {
		if err := w.Namespaces().Delete(bg, "a"); result(err) != "failed_precondition" {
			t.Errorf("before %s goes: %v", what, err)
		}
		switch what {
		case "content":
			w.must(second(w.snapshotter(a, "native").Prepare(bg, "k", "", nil)))
			w.must(w.Blobs(a).Delete(bg, d))
		case "snapshot":
			w.must(second(w.Images(a).Create(bg, testImage("i", d), nil)))
			w.must(w.snapshotter(a, "native").Remove(bg, "k"))
		case "image":
			w.must(second(w.Containers(a).Create(bg, testContainer("c"))))
			w.must(w.Images(a).Delete(bg, "i", nil))
		case "container":
			w.must(w.Containers(a).Delete(bg, "c"))
		}
	}
	w.must(w.Namespaces().Delete(bg, "a"))
	all, err := w.Namespaces().List(bg)
	if err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for info := range w.disk.Ingests(bg) {
		t.Errorf("ingest left: %+v", info)
	}
}

func TestLeases(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	l, err := w.Leases(s).Create(bg, "", map[string]string{"empty": "", "big": strings.Repeat("x", 5000)})
	w.must(err)
	if nanos, random, ok := strings.Cut(l.Id, "-"); !ok || len(random) != 4 || len(nanos) < 19 || len(l.Labels) != 1 {
		t.Errorf("%v", l)
	}
	held := func() []string {
		t.Helper()
		all, err := w.Leases(s).ListResources(bg, l.Id)
		w.must(err)
		return keys(all, func(r *leases.Resource) string { return r.Type + " " + r.Id })
	}
	expect := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		if diff := cmp.Diff(want, held()); diff != "" {
			t.Error(diff)
		}
	}
	leased := Scope{"ns", l.Id}
	writer, err := w.Blobs(leased).Writer(bg, "ref", content.Expect{})
	w.must(err)
	expect("ingests ref")
	w.must(second(writer.Write([]byte("x"))))
	w.must(writer.Commit(bg, 0, "", nil))
	d := digest.FromString("x")
	expect("content " + d.String())

	there := w.blob(s, "there", nil)
	if _, err := writeBlob(w.DB, leased, "there", nil); result(err) != "already_exists" {
		t.Error(err)
	}
	expect("content "+d.String(), "content "+there.String())
	w.must(w.Blobs(leased).Delete(bg, d))
	w.must(w.Blobs(leased).Delete(bg, there))

	native := w.snapshotter(leased, "native")
	w.layer(w.snapshotter(s, "native"), "base", "", nil)
	if _, err := native.Prepare(bg, "k", "", map[string]string{labels.SnapshotRef: "base"}); result(err) != "already_exists" {
		t.Error(err)
	}
	expect("snapshots/native base")
	w.must(native.Remove(bg, "base"))
	w.must(second(native.Prepare(bg, "k", "", nil)))
	expect("snapshots/native k")
	w.must(native.Commit(bg, "n", "k", "", nil))
	w.must(second(native.View(bg, "v", "n", nil)))
	expect("snapshots/native n", "snapshots/native v")
	w.must(second(native.Prepare(bg, "k", "", nil)))
	if err := native.Commit(bg, "n", "k", "", nil); result(err) != "already_exists" {
		t.Error(err)
	}
	expect("snapshots/native k", "snapshots/native n", "snapshots/native v")

	w.must(second(w.Images(leased).Create(bg, testImage("stays", d), nil)))
	going := testImage("goes", d)
	going.Labels = map[string]string{labels.GCExpire: time.Now().Add(time.Hour).Format(time.RFC3339)}
	w.must(second(w.Images(leased).Create(bg, going, nil)))
	expect("images goes", "snapshots/native k", "snapshots/native n", "snapshots/native v")
	w.must(w.Images(leased).Delete(bg, "goes", nil))
	w.must(w.Leases(s).DeleteResource(bg, l.Id, &leases.Resource{Type: "snapshots/native", Id: "k"}))
	expect("snapshots/native n", "snapshots/native v")
	w.must(w.Leases(s).Delete(bg, l.Id))
	if _, err := w.Leases(s).ListResources(bg, l.Id); result(err) != "not_found" {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	long := strings.Repeat("x", 5000)
	for _, name := range []string{"", "a\x00b", long} {
		for what, err := range map[string]error{
			"image":    second(w.Images(s).Create(bg, testImage(name, digest.FromString("x")), nil)),
			"snapshot": second(native.Prepare(bg, name, "", nil)),
			"commit":   native.Commit(bg, name, "k", "", nil),
			"ref":      second(w.Blobs(s).Writer(bg, name, content.Expect{})),
			"lease":    w.Leases(s).Delete(bg, name),
		} {
			if result(err) != "invalid_argument" || len(err.Error()) > 500 {
				t.Errorf("%s named %.10q: %v", what, name, err)
			}
		}
	}
	for _, name := range []string{"", "nope"} {
		if _, err := w.Snapshotter(s, name); result(err) != "invalid_argument" {
			t.Errorf("snapshotter %q: %v", name, err)
		}
	}
	for _, name := range []string{strings.Repeat("y", 4000), "space and\nnewline", "ünïcode/with:all@kinds"} {
		w.layer(native, name, "", nil)
		w.must(second(native.Prepare(bg, "on "+name[:10], name, nil)))
	}
}
