package metadata

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	leasesapi "github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

func say(chains []Chain) string {
	var all []string
	for _, c := range chains {
		var links []string
		for _, l := range c.Links {
			links = append(links, l.Kind+" "+l.Name)
			if l.By != "" {
				links = append(links, l.By)
			}
		}
		all = append(all, strings.Join(links, " > ")+" ("+c.Reason+")")
	}
	return strings.Join(all, "; ")
}

// TestWhy asks for the way to objects that are kept in every way there is.
func TestWhy(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	w.layer(native, "base", "", nil)
	w.layer(native, "top", "base", nil)
	w.layer(native, "by label", "", nil)
	layer := w.blob(s, "layer", nil)
	config := w.blob(s, "config", map[string]string{labels.GCRefSnapshot + "native": "by label"})
	manifest := w.blob(s, "manifest", map[string]string{labels.GCRefConfig: config.String(), labels.GCRefLayer + "0": layer.String()})
	back := w.blob(s, "referrer", map[string]string{labels.GCBackRefContent + ".subject": manifest.String()})
	root := w.blob(s, "root", map[string]string{labels.GCRoot: "yes"})
	held := w.blob(s, "held", nil)
	w.must(second(w.Images(s).Create(bg, testImage("image", manifest), nil)))
	w.must(second(native.Prepare(bg, "rw", "top", nil)))
	c := testContainer("c")
	c.Snapshotter, c.SnapshotKey = "native", "rw"
	w.must(second(w.Containers(s).Create(bg, c)))
	w.must(second(w.Leases(s).Create(bg, "lease", nil)))
	w.must(w.Leases(s).AddResource(bg, "lease", &leasesapi.Resource{Type: "content", Id: held.String()}))
	garbage := w.blob(s, "garbage", nil)
	d := func(d digest.Digest) string { return "blob " + d.String() }
	for object, want := range map[string]string{
		layer.String():                      "image image > target > " + d(manifest) + " > label " + labels.GCRefLayer + "0 > " + d(layer) + " (it does not end by itself)",
		config.Encoded()[:12]:               "image image > target > " + d(manifest) + " > label " + labels.GCRefConfig + " > " + d(config) + " (it does not end by itself)",
		"by label":                          "image image > target > " + d(manifest) + " > label " + labels.GCRefConfig + " > " + d(config) + " > label " + labels.GCRefSnapshot + "native > snapshot by label (it does not end by itself)",
		back.String():                       "image image > target > " + d(manifest) + " > label " + labels.GCBackRefContent + ".subject of the other > " + d(back) + " (it does not end by itself)",
		"base":                              "container c > snapshot > snapshot rw > parent > snapshot top > parent > snapshot base (it is a container)",
		root.String():                       d(root) + " (its label containerd.io/gc.root)",
		held.String():                       "lease lease > holds > " + d(held) + " (it does not end by itself)",
		garbage.String():                    d(garbage) + " (nothing keeps it)",
		"c":                                 "container c (it is a container)",
		"sha256:" + strings.Repeat("0", 64): "not_found",
		"nothing":                           "not_found",
		"sha256:":                           "invalid_argument",
	} {
		chains, err := w.Why(bg, "", object)
		got := say(chains)
		if err != nil {
			got = result(err)
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", object, got, want)
		}
	}
	if _, err := w.Why(bg, "elsewhere", layer.String()); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if chains, err := w.Why(bg, "elsewhere", layer.String()); err != nil || len(chains) != 1 || !strings.Contains(say(chains), "no row") {
		t.Errorf("%s, %v", say(chains), err)
	}
}

// TestWhyAgreesWithCollect makes stores at random and compares what Why,
// Usage and Prunable say would go with what a collection removes.
func TestWhyAgreesWithCollect(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		var blobs []digest.Digest
		for n := range 20 {
			d := w.blob(s, fmt.Sprint(seed, " ", n), nil)
			given := map[string]string{}
			for range r.IntN(3) {
				if len(blobs) > 0 {
					given[fmt.Sprint(labels.GCRefContent, ".", r.IntN(9))] = blobs[r.IntN(len(blobs))].String()
				}
			}
			switch r.IntN(8) {
			case 0:
				given[labels.GCRoot] = "1"
			case 1:
				given[labels.GCRefSnapshot+"native"] = fmt.Sprint(seed, " layer ", r.IntN(8))
			case 2:
				given[labels.GCBackRefImage] = fmt.Sprint(seed, " image ", r.IntN(4))
			}
			w.must(second(w.Blobs(s).Update(bg, &contentapi.Info{Digest: d.String(), Labels: given})))
			blobs = append(blobs, d)
		}
		for n := range 8 {
			parent := ""
			if n > 0 && r.IntN(3) > 0 {
				parent = fmt.Sprint(seed, " layer ", r.IntN(n))
			}
			w.layer(native, fmt.Sprint(seed, " layer ", n), parent, nil)
		}
		for n := range 4 {
			image := testImage(fmt.Sprint(seed, " image ", n), blobs[r.IntN(len(blobs))])
			if r.IntN(3) == 0 {
				image.Labels = map[string]string{labels.GCExpire: time.Now().Add(-time.Hour).Format(time.RFC3339)}
			}
			w.must(second(w.Images(s).Create(bg, image, nil)))
		}
		id := fmt.Sprint("lease", seed)
		flat := map[string]string{}
		if r.IntN(2) == 0 {
			flat[labels.GCFlat] = "1"
		}
		w.must(second(w.Leases(s).Create(bg, id, flat)))
		w.must(w.Leases(s).AddResource(bg, id, &leasesapi.Resource{Type: "content", Id: blobs[r.IntN(20)].String()}))
		w.must(w.Leases(s).AddResource(bg, id, &leasesapi.Resource{Type: "snapshots/native", Id: fmt.Sprint(seed, " layer ", r.IntN(8))}))

		before := w.objects(s)
		var byWhy []string
		for _, object := range before {
			chains, err := w.Why(bg, "ns", object)
			if err != nil || len(chains) != 1 {
				t.Fatalf("%s: %v, %v", object, chains, err)
			}
			if chains[0].Garbage {
				byWhy = append(byWhy, object)
			} else if last := chains[0].Links[len(chains[0].Links)-1]; last.Name != object {
				t.Errorf("%s: %s", object, say(chains))
			}
			for _, l := range chains[0].Links[:len(chains[0].Links)-1] {
				if l.By == "" {
					t.Errorf("%s: %s", object, say(chains))
				}
			}
		}
		usage, err := w.Usage(bg)
		w.must(err)
		var byUsage, byPrune []string
		for _, o := range usage.Objects {
			if o.Owners == 0 && o.Kind != "ingest" {
				byUsage = append(byUsage, o.Name)
			}
		}
		pruned, err := w.Prunable(bg, PruneOptions{})
		w.must(err)
		for _, p := range pruned {
			byPrune = append(byPrune, p.Name)
		}
		w.collect()
		after := w.objects(s)
		gone := slices.DeleteFunc(before, func(o string) bool { return slices.Contains(after, o) })
		for what, said := range map[string][]string{"why": byWhy, "usage": byUsage, "prune": byPrune} {
			slices.Sort(said)
			if !slices.Equal(said, gone) {
				t.Errorf("seed %d: %s says\n%q, gone are\n%q", seed, what, said, gone)
			}
		}
	}
}

// objects are the names of blobs and snapshots.
func (w *world) objects(s Scope) []string {
	w.t.Helper()
	var all []string
	blobs, err := w.Blobs(s).List(bg)
	w.must(err)
	for _, b := range blobs {
		all = append(all, b.Digest)
	}
	for info, err := range w.snapshotter(s, "native").All(bg) {
		w.must(err)
		all = append(all, info.Name)
	}
	slices.Sort(all)
	return all
}

// deepDriver has snapshots that are too deep to be measured in full.
type deepDriver struct{ *testDriver }

func (deepDriver) Usage(context.Context, snapshots.ID) (snapshots.Usage, error) {
	return snapshots.Usage{Size: 7, Inodes: 1}, fmt.Errorf("deep: %w", errdefs.ErrResourceExhausted)
}

// TestUsageOfDeepTree: one container that nests directories does not hide who has what.
func TestUsageOfDeepTree(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Drivers["native"] = deepDriver{o.Drivers["native"].(*testDriver)} })
	s := Scope{Namespace: "ns"}
	w.must(second(w.snapshotter(s, "native").Prepare(bg, "rw", "", nil)))
	u, err := w.Usage(bg)
	if err != nil || !slices.ContainsFunc(u.Objects, func(o Object) bool { return o.Name == "rw" && o.Bytes == 7 }) {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := w.Prunable(bg, PruneOptions{}); err != nil {
		t.Error(err)
	}
}

// TestUsage counts who has what, with what is shared.
func TestUsage(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	w.layer(native, "top", "", nil)
	shared := w.blob(s, "shared", nil)
	w.blob(Scope{Namespace: "other"}, "shared", nil) // the same bytes on disk
	w.blob(s, "garbage", nil)
	one := w.blob(s, "one", map[string]string{labels.GCRefContent + ".0": shared.String(), labels.GCRefSnapshot + "native": "top"})
	two := w.blob(s, "two two", map[string]string{labels.GCRefContent + ".0": shared.String()})
	w.must(second(w.Images(s).Create(bg, testImage("one", one), nil)))
	w.must(second(w.Images(s).Create(bg, testImage("two", two), nil)))
	w.must(second(native.Prepare(bg, "rw", "top", nil)))
	c := testContainer("c")
	c.Snapshotter, c.SnapshotKey = "native", "rw"
	w.must(second(w.Containers(s).Create(bg, c)))
	u, err := w.Usage(bg)
	w.must(err)
	owners := map[string]Owner{}
	for _, o := range u.Owners {
		owners[o.Kind+" "+o.Name] = o
	}
	if o := owners["image one"]; o.Bytes != 9 || o.Unique != 3 || o.Containers != 1 || o.Objects != 3 {
		t.Errorf("%+v", o)
	}
	if o := owners["image two"]; o.Bytes != 13 || o.Unique != 7 || o.Containers != 0 || o.Objects != 2 {
		t.Errorf("%+v", o)
	}
	if o := owners["container c"]; o.Objects != 2 {
		t.Errorf("%+v", o)
	}
	for _, p := range u.Places {
		if p.Name == "content" && (p.Objects != 4 || p.Bytes != 6+7+3+7 || p.Garbage != 7 || p.Unused != 7) {
			t.Errorf("%+v", p)
		}
	}
	idle := func(string, string) bool { return true }
	for _, c := range []struct {
		o    PruneOptions
		want string
	}{
		{PruneOptions{}, "blob garbage"},
		{PruneOptions{Images: true}, "blob garbage, blob two two, image two"},
		{PruneOptions{Images: true, Containers: idle}, "blob garbage, blob one, blob shared, blob two two, container c, image one, image two, snapshot rw, snapshot top"},
		{PruneOptions{Containers: idle}, "blob garbage, container c, snapshot rw"},
		{PruneOptions{Images: true, Before: time.Now().Add(-time.Hour)}, "blob garbage"},
		{PruneOptions{Images: true, Namespace: "other"}, "blob garbage"},
	} {
		found, err := w.Prunable(bg, c.o)
		w.must(err)
		var got []string
		for _, p := range found {
			name := p.Name
			for _, text := range []string{"garbage", "one", "shared", "two two"} {
				if name == digest.FromString(text).String() {
					name = text
				}
			}
			if p.Namespace == "ns" {
				got = append(got, p.Kind+" "+name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%+v\ngot  %s\nwant %s", c.o, strings.Join(got, ", "), c.want)
		}
	}
}
