package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
)

// export exports images by name.
func (w *world) export(o ExportOptions, names ...string) ([]byte, error) {
	w.t.Helper()
	var list []Named
	for _, name := range names {
		row, err := w.db.Images(scope).Get(bg, name)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, Named{name, ocispec.Descriptor{
			MediaType: row.GetTarget().GetMediaType(), Digest: digest.Digest(row.GetTarget().GetDigest()), Size: row.GetTarget().GetSize(),
		}})
	}
	var out bytes.Buffer
	err := w.Export(bg, scope, list, &out, o, nil)
	return out.Bytes(), err
}

func (w *world) mustExport(o ExportOptions, names ...string) []byte {
	w.t.Helper()
	data, err := w.export(o, names...)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// unpackTar gives the files of an archive, and their names in order. Blobs have to be
// what their names say.
func unpackTar(t testing.TB, archive []byte) (map[string][]byte, []string) {
	t.Helper()
	files, order := map[string][]byte{}, []string(nil)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if dir, name := path.Split(h.Name); dir == "blobs/sha256/" {
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != name {
				t.Errorf("%s has the digest %x", h.Name, sum)
			}
		}
		if files[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name], order = data, append(order, h.Name)
	}
}

// bothPlatforms imports an index for this platform and another one.
func (w *world) bothPlatforms(name string) {
	w.t.Helper()
	l, _, _ := several(w.t, name, small(w.t, "", here), small(w.t, "", other))
	w.mustImport(archiveOf(w.t, l), ImportOptions{AllPlatforms: true})
}

// What is exported is imported again as what it was.
func TestExport(t *testing.T) {
	for name, compression := range map[string]string{"gzip": testimage.Gzip, "zstd": testimage.Zstd, "plain": testimage.None} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := w.mustImport(archiveOf(t, layout(t, compression, small(t, "example.org/demo:1", here))), ImportOptions{})
			archive := w.mustExport(ExportOptions{}, "example.org/demo:1")
			if again := w.mustExport(ExportOptions{}, "example.org/demo:1"); !bytes.Equal(archive, again) {
				t.Error("the same image has given other bytes")
			}
			files, order := unpackTar(t, archive)
			if !slices.Equal(order[:3], []string{"oci-layout", "index.json", "manifest.json"}) || len(files) != 3+4 {
				t.Errorf("files: %q", order)
			}
			if err := w.db.Images(scope).Delete(bg, "example.org/demo:1", nil); err != nil {
				t.Fatal(err)
			}
			w.empty()
			after := w.mustImport(archive, ImportOptions{})
			if after.Target.Digest != before.Target.Digest || after.Name != before.Name || after.ChainID != before.ChainID {
				t.Errorf("imported again: %+v, before %+v", after, before)
			}
			// As docker has it, without what OCI has.
			if err := w.db.Images(scope).Delete(bg, "example.org/demo:1", nil); err != nil {
				t.Fatal(err)
			}
			w.collect()
			delete(files, "index.json")
			asDocker := w.mustImport(tarOf(t, files), ImportOptions{})
			if asDocker.Name != before.Name || asDocker.ChainID != before.ChainID {
				t.Errorf("imported as docker's: %+v, before %+v", asDocker, before)
			}
		})
	}
}

// Which platforms are written, and what is said of them.
func TestExportPlatforms(t *testing.T) {
	w := newWorld(t)
	w.bothPlatforms("example.org/both:1")
	for name, c := range map[string]struct {
		o     ExportOptions
		blobs int // index, and for each platform manifest, config, two layers
		arch  []string
	}{
		"own":   {ExportOptions{}, 1 + 4, []string{here.Architecture}},
		"other": {ExportOptions{Platforms: []string{"linux/s390x"}}, 1 + 4, []string{"s390x"}},
		"two":   {ExportOptions{Platforms: []string{"linux/s390x", "linux/" + here.Architecture}}, 1 + 7, nil},
		"all":   {ExportOptions{AllPlatforms: true}, 1 + 7, nil},
	} {
		files, order := unpackTar(t, w.mustExport(c.o, "example.org/both:1"))
		if len(files) != 3+c.blobs {
			t.Errorf("%s: %q", name, order)
		}
		var index ocispec.Index
		if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
			t.Fatalf("%s: index.json %s, %v", name, files["index.json"], err)
		}
		if a := index.Manifests[0].Annotations; a[nameAnnotation] != "example.org/both:1" || a[ocispec.AnnotationRefName] != "1" {
			t.Errorf("%s: annotations %v", name, a)
		}
		var docker []dockerImage
		if err := json.Unmarshal(files["manifest.json"], &docker); err != nil || len(docker) != 1 {
			t.Fatalf("%s: manifest.json %s, %v", name, files["manifest.json"], err)
		}
		for _, file := range append(docker[0].Layers, docker[0].Config) {
			if files[file] == nil {
				t.Errorf("%s: manifest.json names %s, which is not there", name, file)
			}
		}
		for _, arch := range c.arch {
			if !bytes.Contains(files[docker[0].Config], []byte(`"architecture":"`+arch+`"`)) {
				t.Errorf("%s: the config for docker is %s", name, files[docker[0].Config])
			}
		}
	}
	if files, _ := unpackTar(t, w.mustExport(ExportOptions{NoDocker: true}, "example.org/both:1")); files["manifest.json"] != nil {
		t.Error("manifest.json although it is to be left out")
	}
	_, err := w.export(ExportOptions{Platforms: []string{"plan9/mips"}}, "example.org/both:1")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("a platform that it does not have: %v", err)
	}
}

// Several names and images: blobs are there once, names of one image stand together.
func TestExportSeveral(t *testing.T) {
	w := newWorld(t)
	one := small(t, "example.org/a:1", here)
	w.mustImport(archiveOf(t, layout(t, testimage.Gzip, one)), ImportOptions{})
	one.Name = "docker.io/library/b:2"
	w.mustImport(archiveOf(t, layout(t, testimage.Gzip, one)), ImportOptions{})
	third := small(t, "example.org/c:3", here)
	third.Layers = third.Layers[:1]
	w.mustImport(archiveOf(t, layout(t, testimage.Gzip, third)), ImportOptions{})
	files, _ := unpackTar(t, w.mustExport(ExportOptions{}, "example.org/a:1", "docker.io/library/b:2", "example.org/c:3"))
	if len(files) != 3+4+2 {
		t.Errorf("%d files", len(files))
	}
	var docker []dockerImage
	if err := json.Unmarshal(files["manifest.json"], &docker); err != nil || len(docker) != 2 ||
		!slices.Equal(docker[0].RepoTags, []string{"example.org/a:1", "b:2"}) || !slices.Equal(docker[1].RepoTags, []string{"example.org/c:3"}) {
		t.Errorf("manifest.json: %s, %v", files["manifest.json"], err)
	}
	if _, err := w.export(ExportOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no image: %v", err)
	}
}

// What is missing or damaged ends an export, and nothing stays of it.
func TestExportOfWhatIsNotWhole(t *testing.T) {
	w := newWorld(t)
	w.bothPlatforms("example.org/both:1")
	row, err := w.db.Images(scope).Get(bg, "example.org/both:1")
	if err != nil {
		t.Fatal(err)
	}
	i, err := resolve(bg, w.db.Blobs(scope), ocispec.Descriptor{
		MediaType: row.GetTarget().GetMediaType(), Digest: digest.Digest(row.GetTarget().GetDigest()), Size: row.GetTarget().GetSize(),
	}, choice{every: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range i.manifests {
		if m.platform.Architecture == "s390x" {
			if err := w.db.Blobs(scope).Delete(bg, m.doc.Layers[0].Digest); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.export(ExportOptions{AllPlatforms: true}, "example.org/both:1"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "layer 1") {
		t.Errorf("all: %v", err)
	}
	w.mustExport(ExportOptions{}, "example.org/both:1")
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if err := w.Export(ctx, scope, []Named{{"x", i.target}}, io.Discard, ExportOptions{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if leases, err := w.db.Leases(scope).List(bg); err != nil || len(leases) > 0 {
		t.Errorf("leases: %v, %v", leases, err)
	}
}

// What is no container image, as a chart is none, leaves and comes back as it is.
func TestExportArtifact(t *testing.T) {
	w := newWorld(t)
	l := layout(t, testimage.Gzip)
	chart, err := l.JSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: l.Blob("application/vnd.cncf.helm.config.v1+json", []byte("{}")),
		Layers: []ocispec.Descriptor{l.Blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", []byte("a chart"))},
	})
	if err == nil {
		err = l.List(chart, "example.org/chart:1")
	}
	if err != nil {
		t.Fatal(err)
	}
	before := w.mustImport(archiveOf(t, l), ImportOptions{NoUnpack: true})
	archive := w.mustExport(ExportOptions{}, "example.org/chart:1")
	files, _ := unpackTar(t, archive)
	if files["manifest.json"] != nil || len(files) != 2+3 {
		t.Errorf("%d files, for docker %s", len(files), files["manifest.json"])
	}
	if err := w.db.Images(scope).Delete(bg, "example.org/chart:1", nil); err != nil {
		t.Fatal(err)
	}
	w.empty()
	if after := w.mustImport(archive, ImportOptions{NoUnpack: true}); after.Target.Digest != before.Target.Digest {
		t.Errorf("imported again: %+v, before %+v", after, before)
	}
}

// How the images of an archive are called when it is said how.
func TestReferences(t *testing.T) {
	const d = digest.Digest("sha256:aa")
	prefix := Reference{Name: "docker.io/library/demo", Prefix: true}
	all := Reference{Name: "import", Prefix: true, Overwrite: true}
	digested := Reference{Name: "import", Prefix: true, Overwrite: true, Digest: true}
	unnamed := Reference{Name: "import", Prefix: true, Overwrite: true, Digest: true, SkipNamed: true}
	for _, c := range []struct {
		ref       Reference
		full, tag string
		want      string
	}{
		{prefix, "docker.io/library/demo:1", "", "docker.io/library/demo:1"},
		{prefix, "docker.io/library/demolition:1", "", ""},
		{prefix, "docker.io/library/other:1", "", ""},
		{prefix, "", "2", "docker.io/library/demo:2"},
		{prefix, "", "", ""},
		{all, "docker.io/library/other:1", "", "docker.io/library/other:1"},
		{all, "", "latest", "import:latest"},
		{digested, "docker.io/library/other:1", "", "docker.io/library/other:1 import@sha256:aa"},
		{digested, "", "", "import@sha256:aa"},
		{unnamed, "docker.io/library/other:1", "", "docker.io/library/other:1"},
		{unnamed, "", "", "import@sha256:aa"},
		{Reference{Name: "example.org/whole:1"}, "docker.io/library/demo:1", "", ""},
	} {
		if got := strings.Join(c.ref.names(c.full, c.tag, d), " "); got != c.want {
			t.Errorf("%+v of %q, %q: %q, want %q", c.ref, c.full, c.tag, got, c.want)
		}
	}
}

// An archive as one image, beside those in it, which go with it.
func TestImportAsOne(t *testing.T) {
	for name, archive := range map[string][]byte{
		"layout": archiveOf(t, layout(t, testimage.Gzip, small(t, "example.org/a:1", here))),
		"docker": tarOf(t, docker(t, testimage.None, small(t, "example.org/a:1", here))),
	} {
		w := newWorld(t)
		made, err := w.Import(bg, scope, bytes.NewReader(archive), ImportOptions{
			Index: "example.org/whole:1", Labels: map[string]string{"a": "b"}, Compress: true,
			References: []Reference{{Name: "import", Prefix: true, Overwrite: true, Digest: true}},
		}, nil)
		if err != nil || len(made) != 3 {
			t.Fatalf("%s: made %+v, %v", name, made, err)
		}
		w.collect()
		if got := w.names(); got != "example.org/a:1 example.org/whole:1 import@"+made[1].Target.Digest.String() {
			t.Errorf("%s: images %s", name, got)
		}
		row, err := w.db.Images(scope).Get(bg, "example.org/whole:1")
		if err != nil || row.GetLabels()["a"] != "b" || row.GetTarget().GetMediaType() != ocispec.MediaTypeImageIndex {
			t.Errorf("%s: %v, %v", name, row, err)
		}
		if name == "docker" {
			files, _ := unpackTar(t, w.mustExport(ExportOptions{}, "example.org/a:1"))
			if !strings.Contains(string(files["blobs/sha256/"+made[1].Target.Digest.Encoded()]), dockerLayerGzip) {
				t.Error("docker: the layers are not compressed")
			}
		}
		if err := w.db.Images(scope).Delete(bg, "example.org/whole:1", nil); err != nil {
			t.Fatal(err)
		}
		w.collect()
		if got := w.names(); got != "" {
			t.Errorf("%s: images %s stay", name, got)
		}
	}
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "example.org/a:1", here)))
	_, err := w.Import(bg, scope, bytes.NewReader(archive), ImportOptions{References: []Reference{{Name: "example.org/b", Prefix: true}}}, nil)
	if !errdefs.IsNotFound(err) {
		t.Errorf("none of that name: %v", err)
	}
}
