package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/snapshots/overlay"
)

// depot is a registry with the blobs that a store had.
type depot map[digest.Digest][]byte

func (s depot) Fetch(_ context.Context, host, repository string, d ocispec.Descriptor) (io.ReadCloser, error) {
	data, ok := s[d.Digest]
	if host != "reg.example" || repository != "demo" || !ok {
		return nil, fmt.Errorf("%s/%s: %w", host, repository, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// deposit copies all blobs to a depot, and records that they came from there.
func (w *world) deposit() depot {
	w.t.Helper()
	out := depot{}
	for _, d := range w.content() {
		data, err := os.ReadFile(w.blob(digest.Digest(d)))
		if err != nil {
			w.t.Fatal(err)
		}
		out[digest.Digest(d)] = data
		key := labels.DistributionSource + "reg.example"
		_, err = w.db.Blobs(scope).Update(bg, &contentapi.Info{Digest: d, Labels: map[string]string{key: "demo"}}, "labels."+key)
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

func (w *world) blob(d digest.Digest) string {
	return filepath.Join(os.Getenv("TMPDIR"), "content", "blobs", "sha256", d.Encoded())
}

// layerDir is where the files of a layer are.
func (w *world) layerDir(snapshotter, chain string) string {
	w.t.Helper()
	sn, err := w.db.Snapshotter(scope, snapshotter)
	if err != nil {
		w.t.Fatal(err)
	}
	mounts, err := sn.View(bg, "where", chain, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	dirs, err := diff.LowerDirs(mounts)
	if err = errors.Join(err, sn.Remove(bg, "where")); err != nil {
		w.t.Fatal(err)
	}
	return dirs[0]
}

// check gives what a check says, one line a problem, notes left out.
func (w *world) check(o CheckOptions) []string {
	w.t.Helper()
	o.Images = true
	var said []string
	for p := range w.Check(bg, o) {
		if p.Note {
			continue
		}
		line := p.String()
		switch {
		case p.Repaired != "":
			line = "REPAIRED " + line + ": " + p.Repaired
		case p.Failed != "":
			line = "FAILED " + line + ": " + p.Failed
		}
		said = append(said, line)
	}
	return said
}

func (w *world) mustBeWhole(o CheckOptions) {
	w.t.Helper()
	o.Repair = false
	if said := w.check(o); len(said) > 0 {
		w.t.Errorf("left: %s", strings.Join(said, "\n"))
	}
}

// TestCheckRepairs damages what an image is made of, in every way. With a
// registry that has it all comes back; the image is whole, unpacked and kept
// from collection as before.
func TestCheckRepairs(t *testing.T) {
	type parts struct {
		w                        *world
		manifest, config, layer  digest.Digest
		bottom, top, snapshotter string
	}
	remove := func(path func(p *parts) string) func(*parts) error {
		return func(p *parts) error { return os.RemoveAll(path(p)) }
	}
	write := func(name, text string) func(*parts) error {
		return func(p *parts) error {
			return os.WriteFile(filepath.Join(p.w.layerDir(p.snapshotter, p.top), name), []byte(text), 0o644)
		}
	}
	mark := func(name, attribute, value string) func(*parts) error {
		return func(p *parts) error {
			return unix.Setxattr(filepath.Join(p.w.layerDir(p.snapshotter, p.top), name), attribute, []byte(value), 0)
		}
	}
	forget := func(blob func(p *parts) digest.Digest) func(*parts) error {
		return func(p *parts) error { return p.w.db.Blobs(scope).Delete(bg, blob(p)) }
	}
	for name, damage := range map[string]struct {
		do   func(p *parts) error
		deep bool // shows only to a check that reads everything
	}{
		"no manifest": {do: remove(func(p *parts) string { return p.w.blob(p.manifest) })},
		"no config":   {do: remove(func(p *parts) string { return p.w.blob(p.config) })},
		"no layer":    {do: remove(func(p *parts) string { return p.w.blob(p.layer) })},
		"no blobs": {do: func(p *parts) error {
			return errors.Join(os.Remove(p.w.blob(p.layer)), os.Remove(p.w.blob(p.config)))
		}},
		"short layer": {do: func(p *parts) error { return os.Truncate(p.w.blob(p.layer), 3) }},
		"flipped layer": {deep: true, do: func(p *parts) error {
			data, err := os.ReadFile(p.w.blob(p.layer))
			data[len(data)/2] ^= 4
			return errors.Join(err, os.Remove(p.w.blob(p.layer)), os.WriteFile(p.w.blob(p.layer), data, 0o444))
		}},
		"no top":    {do: remove(func(p *parts) string { return filepath.Dir(p.w.layerDir(p.snapshotter, p.top)) })},
		"no bottom": {do: remove(func(p *parts) string { return filepath.Dir(p.w.layerDir(p.snapshotter, p.bottom)) })},
		"no files":  {do: remove(func(p *parts) string { return p.w.layerDir(p.snapshotter, p.bottom) })},
		"layer and its blob": {do: func(p *parts) error {
			return errors.Join(os.RemoveAll(filepath.Dir(p.w.layerDir(p.snapshotter, p.bottom))), os.Remove(p.w.blob(p.layer)))
		}},
		"a file less":              {deep: true, do: remove(func(p *parts) string { return filepath.Join(p.w.layerDir(p.snapshotter, p.top), "etc/new") })},
		"a file more":              {deep: true, do: write("etc/more", "x")},
		"empty file":               {deep: true, do: write("etc/new", "")},
		"other bytes":              {deep: true, do: write("etc/new", "3")},
		"mode":                     {deep: true, do: func(p *parts) error { return os.Chmod(p.w.layerDir(p.snapshotter, p.bottom)+"/etc", 0o700) }},
		"owner":                    {deep: true, do: func(p *parts) error { return os.Lchown(p.w.layerDir(p.snapshotter, p.top)+"/etc/new", 7, 1000) }},
		"attribute":                {deep: true, do: mark("etc/new", "trusted.note", "x")},
		"opaque":                   {deep: true, do: mark("etc", "trusted.overlay.opaque", "y")},
		"a manifest without a row": {do: forget(func(p *parts) digest.Digest { return p.manifest })},
		"a config without a row":   {do: forget(func(p *parts) digest.Digest { return p.config })},
		"a layer without a row":    {do: forget(func(p *parts) digest.Digest { return p.layer })},
		"neither row nor bytes": {do: func(p *parts) error {
			return errors.Join(p.w.db.Blobs(scope).Delete(bg, p.config), p.w.db.Blobs(scope).Delete(bg, p.layer), os.Remove(p.w.blob(p.config)), os.Remove(p.w.blob(p.layer)))
		}},
		"a snapshot without a row": {do: func(p *parts) error {
			sn, err := p.w.db.Snapshotter(scope, p.snapshotter)
			return errors.Join(err, sn.Remove(bg, p.top))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			made := w.mustImport(archiveOf(t, layout(t, testimage.Gzip, small(t, "demo:1", here))), ImportOptions{})
			registry := w.deposit()
			w.mustBeWhole(CheckOptions{Deep: true})
			row, err := w.db.Images(scope).Get(bg, made.Name)
			if err != nil {
				t.Fatal(err)
			}
			st, err := w.State(bg, "test", row)
			if err != nil || len(st.Variants) != 1 || st.Variants[0].State != Whole || !slices.Equal(st.Variants[0].Unpacked, []string{"overlayfs"}) {
				t.Fatalf("%+v, %v", st, err)
			}
			v := st.Variants[0]
			chains, err := v.chains()
			if err != nil {
				t.Fatal(err)
			}
			p := &parts{w, v.Manifest.Digest, v.doc.Config.Digest, v.doc.Layers[0].Digest, chains[0], chains[1], "overlayfs"}
			if err := damage.do(p); err != nil {
				t.Fatal(err)
			}
			found := w.check(CheckOptions{})
			if (len(found) == 0) != damage.deep {
				t.Errorf("without reading all: %q", found)
			}
			if found = w.check(CheckOptions{Deep: true}); len(found) == 0 {
				t.Error("nothing was found")
			}
			said := w.check(CheckOptions{Deep: true, Repair: true, Fetch: registry})
			for _, line := range said {
				if !strings.HasPrefix(line, "REPAIRED ") {
					t.Error(line)
				}
			}
			w.mustBeWhole(CheckOptions{Deep: true})
			w.collect() // what was brought back is kept
			w.mustBeWhole(CheckOptions{Deep: true})
			w.look("overlayfs", made.ChainID.String(), func(root string) {
				wantFile(t, root+"/etc/arch", here.Architecture)
				wantFile(t, root+"/etc/new", "2")
				wantFile(t, root+"/etc/gone", "")
			})
			if err := w.db.Images(scope).Delete(bg, made.Name, nil); err != nil {
				t.Fatal(err)
			}
			w.empty()
		})
	}
}

// TestCheckWithoutRegistry: what nothing brings back is dropped and said, and an
// import of the same image makes all of it whole again.
func TestCheckWithoutRegistry(t *testing.T) {
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo:1", here)))
	w.mustImport(archive, ImportOptions{})
	for _, d := range w.content() {
		if err := os.Remove(w.blob(digest.Digest(d))); err != nil {
			t.Fatal(err)
		}
	}
	said := strings.Join(w.check(CheckOptions{Repair: true}), "\n")
	if !strings.Contains(said, "dropped (no registry is recorded that has it)") || !strings.Contains(said, `FAILED image "docker.io/library/demo:1"`) ||
		!strings.Contains(said, "pull or import it again") {
		t.Errorf("said %s", said)
	}
	w.mustImport(archive, ImportOptions{})
	w.mustBeWhole(CheckOptions{Deep: true})
}

// TestCheckLimited: the limit of containers' layers is none for an image's layer that
// is unpacked again.
func TestCheckLimited(t *testing.T) {
	w := newWorldOf(t, overlay.Config{Quota: 1})
	made := w.mustImport(archiveOf(t, layout(t, testimage.Gzip, small(t, "demo:1", here))), ImportOptions{})
	w.mustBeWhole(CheckOptions{Deep: true})
	if err := os.RemoveAll(filepath.Dir(w.layerDir("overlayfs", made.ChainID.String()))); err != nil {
		t.Fatal(err)
	}
	w.check(CheckOptions{Repair: true})
	w.mustBeWhole(CheckOptions{Deep: true})
}

// state tells how much of an image is there, in short and in full.
func (w *world) state(name string) (string, State) {
	w.t.Helper()
	row, err := w.db.Images(scope).Get(bg, name)
	if err != nil {
		w.t.Fatal(err)
	}
	st, err := w.State(bg, "test", row)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, v := range st.Variants {
		all = append(all, v.Platform+" "+v.State)
	}
	return strings.Join(all, ", "), st
}

// TestStateOfPlatforms: what was not fetched is absent, what should be there and
// is not in full is partial.
func TestStateOfPlatforms(t *testing.T) {
	w := newWorld(t)
	theirs := testimage.Image{Platform: other, Layers: [][]byte{
		layer(t, testimage.File{Name: "one", Body: "of theirs"}), layer(t, testimage.File{Name: "two", Body: "of theirs"}),
	}}
	l, index, _ := several(t, "demo:1", theirs, small(t, "", here))
	look := func() (string, State) { return w.state("docker.io/library/demo:1") }
	mineIs, theirsIs := "linux/"+here.Architecture+" ", "linux/s390x "
	w.mustImport(archiveOf(t, l), ImportOptions{NoUnpack: true})
	w.collect()
	if got, st := look(); got != theirsIs+Absent+", "+mineIs+Whole || st.Problem != "" {
		t.Errorf("%s: %s", got, st.Problem)
	}
	w.mustImport(archiveOf(t, l), ImportOptions{AllPlatforms: true})
	got, st := look()
	if got != theirsIs+Whole+", "+mineIs+Whole || st.Problem != "" {
		t.Fatalf("%s: %s", got, st.Problem)
	}
	lost := st.Variants[0].doc.Layers[0].Digest
	if slices.ContainsFunc(st.Variants[1].doc.Layers, func(d ocispec.Descriptor) bool { return d.Digest == lost }) {
		t.Fatal("the two share it")
	}
	if err := w.db.Blobs(scope).Delete(bg, lost); err != nil {
		t.Fatal(err)
	}
	if got, st = look(); got != theirsIs+Partial+", "+mineIs+Whole || !strings.Contains(st.Problem, lost.String()) {
		t.Errorf("%s: %s", got, st.Problem)
	}
	if err := w.db.Blobs(scope).Delete(bg, index.Digest); err != nil {
		t.Fatal(err)
	}
	if got, st = look(); got != "" || !strings.Contains(st.Problem, "index "+index.Digest.String()+" is missing") {
		t.Errorf("%s: %s", got, st.Problem)
	}
}

// TestStateOfDocuments: manifest and config of another platform, which a pull can keep
// without its layers, are no damage; what is missing of this one still is.
func TestStateOfDocuments(t *testing.T) {
	w := newWorld(t)
	theirs := testimage.Image{Platform: other, Layers: [][]byte{layer(t, testimage.File{Name: "one", Body: "of theirs"})}}
	l, index, _ := several(t, "", theirs, small(t, "", here))
	made, err := w.Pull(bg, scope, shelve(t, l, index), PullOptions{Documents: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, st := w.state(made.Name)
	if got != "linux/s390x "+Absent+", linux/"+here.Architecture+" "+Whole || st.Problem != "" {
		t.Fatalf("%s: %s", got, st.Problem)
	}
	if len(st.Variants[0].has) != 2 {
		t.Errorf("there is %v of another platform", st.Variants[0].has)
	}
	lost := st.Variants[1].doc.Layers[0].Digest
	if err := w.db.Blobs(scope).Delete(bg, lost); err != nil {
		t.Fatal(err)
	}
	if _, st = w.state(made.Name); st.Variants[1].State != Partial || !strings.Contains(st.Problem, lost.String()) {
		t.Errorf("%s: %s", st.Variants[1].State, st.Problem)
	}
}

// TestStateOfForeignLayers: a layer that is not to be passed on need not be there.
func TestStateOfForeignLayers(t *testing.T) {
	w := newWorld(t)
	o := oddLayout{layout(t, testimage.Gzip), t}
	made, err := w.Pull(bg, scope, shelve(t, o.Layout, odd["a foreign layer that the registry has"](o)), PullOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, st := w.state(made.Name)
	if err := w.db.Blobs(scope).Delete(bg, st.Variants[0].doc.Layers[0].Digest); err != nil {
		t.Fatal(err)
	}
	if got, st := w.state(made.Name); got != "linux/"+here.Architecture+" "+Whole || st.Problem != "" {
		t.Errorf("%s: %s", got, st.Problem)
	}
}

// TestCheckLends: what a namespace lacks and another one has comes back without a
// registry.
func TestCheckLends(t *testing.T) {
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo:1", here)))
	made := w.mustImport(archive, ImportOptions{})
	if _, err := w.Import(bg, metadata.Scope{Namespace: "another"}, bytes.NewReader(archive), ImportOptions{NoUnpack: true}, nil); err != nil {
		t.Fatal(err)
	}
	_, st := w.state(made.Name)
	for _, d := range st.Variants[0].has {
		if err := w.db.Blobs(scope).Delete(bg, d); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range w.check(CheckOptions{Repair: true}) {
		if !strings.HasPrefix(line, "REPAIRED ") {
			t.Error(line)
		}
	}
	w.mustBeWhole(CheckOptions{Deep: true})
	if got, _ := w.state(made.Name); got != "linux/"+here.Architecture+" "+Whole {
		t.Error(got)
	}
}

// TestRecover makes images of blobs whose names are lost: one of a manifest, and one
// of an index with all that it names.
func TestRecover(t *testing.T) {
	both, _, _ := several(t, "demo:1", small(t, "", other), small(t, "", here))
	for name, l := range map[string]*testimage.Layout{"manifest": layout(t, testimage.Gzip, small(t, "demo:1", here)), "index": both} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := w.mustImport(archiveOf(t, l), ImportOptions{AllPlatforms: true, NoUnpack: true})
			var all []digest.Digest
			for _, d := range w.content() {
				all = append(all, digest.Digest(d))
				bare := &contentapi.Info{Digest: d, Labels: map[string]string{labels.GCRoot: "1"}}
				if _, err := w.db.Blobs(scope).Update(bg, bare); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.db.Images(scope).Delete(bg, before.Name, nil); err != nil {
				t.Fatal(err)
			}
			made, err := w.Recover(bg, "test", all)
			if err != nil || len(made) != 1 || !strings.HasPrefix(made[0].Name, "recovered.local/") || made[0].ChainID == "" || made[0].Target.Digest != before.Target.Digest {
				t.Fatalf("%+v, %v", made, err)
			}
			w.collect()
			w.mustBeWhole(CheckOptions{Deep: true})
			w.look("overlayfs", made[0].ChainID.String(), func(root string) { wantFile(t, root+"/etc/new", "2") })
			if err := w.db.Images(scope).Delete(bg, made[0].Name, nil); err != nil {
				t.Fatal(err)
			}
			w.empty() // it is kept by nothing else
		})
	}
}
