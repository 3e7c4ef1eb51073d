package metadata

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/containers/v1"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/snapshots"
)

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestGCVectors builds each graph of gc.json and collects once.
func TestGCVectors(t *testing.T) {
	type object struct {
		Kind, Name, Parent, Snapshot, Target string
		Labels                               map[string]string
		Holds                                []string
	}
	var v struct {
		Scenarios []struct {
			Name    string
			Objects []object
			Left    []string
		}
	}
	readVectors(t, "gc.json", &v)
	if len(v.Scenarios) < 15 {
		t.Fatalf("%d scenarios", len(v.Scenarios))
	}
	for _, sc := range v.Scenarios {
		t.Run(sc.Name, func(t *testing.T) {
			w := newWorld(t)
			s := Scope{Namespace: "ns"}
			native := w.snapshotter(s, "native")
			fix := func(given map[string]string) map[string]string {
				out := map[string]string{}
				for key, value := range given {
					switch {
					case strings.HasPrefix(value, "digest:"):
						value = digest.FromString(value[len("digest:"):]).String()
					case value == "an hour ago":
						value = time.Now().Add(-time.Hour).Format(time.RFC3339)
					case value == "tomorrow":
						value = time.Now().Add(24 * time.Hour).Format(time.RFC3339)
					}
					out[key] = value
				}
				return out
			}
			for _, o := range sc.Objects {
				given := fix(o.Labels)
				switch o.Kind {
				case "content":
					w.blob(s, o.Name, given)
				case "snapshot":
					w.layer(native, o.Name, o.Parent, given)
				case "image":
					image := testImage(o.Name, digest.FromString(o.Target))
					image.Labels = given
					w.must(second(w.Images(s).Create(bg, image, nil)))
				case "container":
					c := testContainer(o.Name)
					c.Snapshotter, c.SnapshotKey, c.Labels = "native", o.Snapshot, given
					w.must(second(w.Containers(s).Create(bg, c)))
				case "lease":
					w.must(second(w.Leases(s).Create(bg, o.Name, given)))
					for _, held := range o.Holds {
						kind, name, _ := strings.Cut(held, ":")
						r := &leases.Resource{Id: name, Type: map[string]string{"content": "content", "snapshot": "snapshots/native", "image": "images"}[kind]}
						if kind == "content" {
							r.Id = digest.FromString(name).String()
						}
						w.must(w.Leases(s).AddResource(bg, o.Name, r))
					}
				default:
					t.Fatalf("kind %q", o.Kind)
				}
			}
			w.collect()
			left := w.left(s)
			if diff := cmp.Diff(sc.Left, left); diff != "" {
				t.Error(diff)
			}
			w.onDisk(left)
		})
	}
}

// left lists what a namespace has, as gc.json names it: content by its bytes.
func (w *world) left(s Scope) []string {
	w.t.Helper()
	out := []string{}
	blobs, err := w.Blobs(s).List(bg)
	w.must(err)
	for _, b := range blobs {
		r, err := w.Blobs(s).Open(bg, digest.Digest(b.Digest))
		w.must(err)
		data := make([]byte, r.Size())
		w.must(second(r.ReadAt(data, 0)))
		w.must(r.Close())
		out = append(out, "content:"+string(data))
	}
	for info, err := range w.snapshotter(s, "native").All(bg) {
		w.must(err)
		out = append(out, "snapshot:"+info.Name)
	}
	all, err := w.Images(s).List(bg)
	w.must(err)
	for _, i := range all {
		out = append(out, "image:"+i.Name)
	}
	cs, err := w.Containers(s).List(bg)
	w.must(err)
	for _, c := range cs {
		out = append(out, "container:"+c.Id)
	}
	ls, err := w.Leases(s).List(bg)
	w.must(err)
	for _, l := range ls {
		out = append(out, "lease:"+l.Id)
	}
	slices.Sort(out)
	return out
}

// onDisk looks whether as many blobs are on disk as are left.
func (w *world) onDisk(left []string) {
	w.t.Helper()
	want, got := 0, 0
	for _, name := range left {
		if strings.HasPrefix(name, "content:") {
			want++
		}
	}
	for _, err := range w.disk.All(bg) {
		w.must(err)
		got++
	}
	if got != want {
		w.t.Errorf("%d blobs on disk, want %d", got, want)
	}
}

// TestFilterVectors asks the stores with the filters of object-filters.json.
func TestFilterVectors(t *testing.T) {
	type question struct {
		Filter  string
		Matches []string
		Result  string
	}
	var v struct{ Kinds map[string][]question }
	readVectors(t, "object-filters.json", &v)
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	one, two := filterWorld(w, s)

	ask := map[string]func(filter string) ([]string, error){
		"images": func(f string) ([]string, error) {
			rows, err := w.Images(s).List(bg, f)
			return keys(rows, (*images.Image).GetName), err
		},
		"containers": func(f string) ([]string, error) {
			rows, err := w.Containers(s).List(bg, f)
			return keys(rows, (*containers.Container).GetId), err
		},
		"sandboxes": func(f string) ([]string, error) {
			rows, err := w.Sandboxes(s).List(bg, f)
			return keys(rows, (*types.Sandbox).GetSandboxId), err
		},
		"leases": func(f string) ([]string, error) {
			rows, err := w.Leases(s).List(bg, f)
			return keys(rows, (*leases.Lease).GetId), err
		},
		"content": func(f string) ([]string, error) {
			rows, err := w.Blobs(s).List(bg, f)
			return keys(rows, func(i *contentapi.Info) string {
				return map[string]string{one.String(): "one", two.String(): "two"}[i.Digest]
			}), err
		},
		"ingests": func(f string) ([]string, error) {
			rows, err := w.Blobs(s).ListStatuses(bg, f)
			return keys(rows, (*contentapi.Status).GetRef), err
		},
		"snapshots": func(f string) ([]string, error) {
			out := []string{}
			for info, err := range w.snapshotter(s, "native").All(bg, f) {
				if err != nil {
					return out, err
				}
				out = append(out, info.Name)
			}
			return out, nil
		},
	}
	for kind, questions := range v.Kinds {
		if ask[kind] == nil || len(questions) == 0 {
			t.Errorf("no %s", kind)
			continue
		}
		for _, q := range questions {
			got, err := ask[kind](q.Filter)
			if err != nil {
				got = nil
			}
			if r := result(err); r != q.Result || !slices.Equal(got, q.Matches) {
				t.Errorf("%s %q: %s %v, want %s %v", kind, q.Filter, r, got, q.Result, q.Matches)
			}
		}
	}
}

// filterWorld makes the objects that object-filters.json is about.
func filterWorld(w *world, s Scope) (one, two digest.Digest) {
	w.t.Helper()
	for name, given := range map[string]map[string]string{
		"reg.example/library/a:1": {"x": "1", "dotted.key": "d"}, "reg.example/library/b:2": {"y": "2"}, "plain": nil,
	} {
		image := testImage(name, digest.FromString(name))
		if name == "plain" {
			image.Target.Digest = "sha256:a116c9ed46d6207734a43317d30fd88f52ac8634c37d904bbf4e41d865f90475"
		}
		image.Labels = given
		w.must(second(w.Images(s).Create(bg, image, nil)))
	}
	c1, c2 := testContainer("c1"), testContainer("c2")
	c1.Image, c1.Labels, c1.Sandbox = "i1", map[string]string{"x": "1"}, "s1"
	c2.Labels, c2.Runtime.Name = map[string]string{"nerdctl/name": "n"}, "io.containerd.kata.v2"
	c2.Snapshotter, c2.SnapshotKey = "native", "k"
	for _, c := range []*containers.Container{c1, c2} {
		w.must(second(w.Containers(s).Create(bg, c)))
	}
	for id, given := range map[string]map[string]string{"s1": {"x": "1"}, "s2": nil} {
		w.must(second(w.Sandboxes(s).Create(bg, &types.Sandbox{SandboxId: id, Labels: given, Runtime: &types.Sandbox_Runtime{Name: "io.containerd.runc.v2"}, Sandboxer: "shim"})))
	}
	w.must(second(w.Leases(s).Create(bg, "l1", map[string]string{"moby/prune.images": "true"})))
	w.must(second(w.Leases(s).Create(bg, "l2", nil)))
	one = w.blob(s, "one", map[string]string{"x": "1", "containerd.io/uncompressed": "sha256:q"})
	two = w.blob(s, "two", nil)
	writer, err := w.Blobs(s).Writer(bg, "up-1", content.Expect{})
	w.must(err)
	w.must(writer.Close())
	native := w.snapshotter(s, "native")
	w.must(second(native.Prepare(bg, "act", "", map[string]string{"x": "1"})))
	w.layer(native, "com", "", nil)
	w.must(second(native.View(bg, "vw", "com", nil)))
	return one, two
}

// TestLabelVectors updates labels under masks as stores.json has it.
func TestLabelVectors(t *testing.T) {
	var v struct {
		Labels []struct {
			Labels, Given                       map[string]string
			Mask                                []string
			Container, Content, Image, Snapshot any
		}
	}
	readVectors(t, "stores.json", &v)
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	for i, c := range v.Labels {
		name := "n" + string(rune('a'+i))
		given := map[string]string{}
		for key, value := range c.Given {
			if value == "4096 bytes" {
				value = strings.Repeat("v", 4096)
			}
			given[key] = value
		}
		d := w.blob(s, name, c.Labels)
		image, container := testImage(name, d), testContainer(name)
		image.Labels, container.Labels = c.Labels, c.Labels
		w.must(second(w.Images(s).Create(bg, image, nil)))
		w.must(second(w.Containers(s).Create(bg, container)))
		w.must(second(native.Prepare(bg, name, "", c.Labels)))

		compare := func(what string, want any, got map[string]string, err error) {
			t.Helper()
			if text, bad := want.(string); bad {
				if result(err) != text {
					t.Errorf("%d %s: %v, want %s", i, what, err, text)
				}
				return
			}
			out := map[string]any{}
			for key, value := range got {
				out[key] = value
			}
			if err != nil || !cmp.Equal(want, any(out)) {
				t.Errorf("%d %s: %v %v, want %v", i, what, out, err, want)
			}
		}
		image.Labels = given
		ri, err := w.Images(s).Update(bg, image, c.Mask, nil)
		compare("image", c.Image, ri.GetLabels(), err)
		container.Labels = given
		rc, err := w.Containers(s).Update(bg, container, c.Mask...)
		compare("container", c.Container, rc.GetLabels(), err)
		rb, err := w.Blobs(s).Update(bg, &contentapi.Info{Digest: d.String(), Labels: given}, c.Mask...)
		compare("content", c.Content, rb.GetLabels(), err)
		rs, err := native.Update(bg, snapshots.Info{Name: name, Labels: given}, c.Mask...)
		compare("snapshot", c.Snapshot, rs.Labels, err)
	}
}
