package clients

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/test/harness"
)

// layout is an OCI layout in memory, made so that a test can spoil it.
type layout struct {
	files map[string][]byte // by path in the layout
	order []string
}

func (l *layout) add(path string, data []byte) {
	if _, ok := l.files[path]; !ok {
		l.order = append(l.order, path)
	}
	l.files[path] = data
}

func (l *layout) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	l.add(blobPath(d.Digest), data)
	return d
}

func blobPath(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// image makes a layout with one image of one plain layer. diffID may be empty
// for the right one.
func image(name string, layer []byte, diffID digest.Digest) (l *layout, layerBlob, configBlob ocispec.Descriptor) {
	l = &layout{files: map[string][]byte{}}
	if diffID == "" {
		diffID = digest.FromBytes(layer)
	}
	layerBlob = l.blob(ocispec.MediaTypeImageLayer, layer)
	configBlob = l.blob(ocispec.MediaTypeImageConfig, mustJSON(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	}))
	manifest := l.blob(ocispec.MediaTypeImageManifest, mustJSON(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configBlob,
		Layers:    []ocispec.Descriptor{layerBlob},
	}))
	manifest.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	l.add("index.json", mustJSON(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	}))
	l.add("oci-layout", mustJSON(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
	return l, layerBlob, configBlob
}

// tar writes the layout as a tar.
func (l *layout) tar() []byte {
	var entries []tar.Header
	for _, path := range l.order {
		if _, ok := l.files[path]; ok {
			entries = append(entries, tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o644})
		}
	}
	return tarOf(entries, l.files)
}

// tarOf makes a tar of the headers, with the data of regular files by name.
func tarOf(entries []tar.Header, data map[string][]byte) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		var content []byte
		if h.Typeflag == tar.TypeReg {
			content = data[h.Name]
		}
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := w.Write(content); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// layers counts the layers made, so that no two are the same: a store that has
// a layer already may take it from there.
var layers int

// goodLayer is a layer with one file.
func goodLayer() []byte {
	layers++
	return tarOf([]tar.Header{{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644}}, map[string][]byte{"file": fmt.Appendf(nil, "content %d\n", layers)})
}

// berth runs the berth command and gives its output, both streams, and error.
func berth(d *harness.Daemon, stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Programs.Path("berth"), args...)
	cmd.Env = append(os.Environ(), "BERTH_ADDRESS="+d.Address, "BERTH_NAMESPACE="+namespace, harness.Race)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// badImage is an archive that can't be imported.
type badImage struct {
	archive []byte
	want    string // part of the error
}

// TestBadImages imports archives that are damaged or lie. Each ends in an error
// that names the trouble, without an image row, and after a collection without
// content.
func TestBadImages(t *testing.T) {
	d := start(t)
	// bad makes an image, spoils it, and names the part of it that the error
	// has to name.
	bad := func(change func(l *layout, layer, config string) (want string)) badImage {
		l, layer, config := image("berth.test/bad:1", goodLayer(), "")
		want := change(l, blobPath(layer.Digest), blobPath(config.Digest))
		return badImage{l.tar(), filepath.Base(want)}
	}
	flip := func(l *layout, path string) string {
		l.files[path][len(l.files[path])/2] ^= 1
		return path
	}
	remove := func(l *layout, path string) string {
		delete(l.files, path)
		return path
	}
	cut := func(at int) badImage {
		l, _, _ := image("berth.test/bad:1", goodLayer(), "")
		data := l.tar()
		return badImage{data[:min(at, len(data)/2)], "too early"}
	}
	tests := map[string]badImage{
		"empty":             {nil, ""},
		"no archive":        {[]byte("this is not a tar archive, and it is not compressed either. " + strings.Repeat("x", 1000)), ""},
		"cut in the middle": cut(1 << 30),
		"cut within a blob": cut(700),
		"no index":          bad(func(l *layout, _, _ string) string { return remove(l, "index.json") }),
		"index is no JSON": bad(func(l *layout, _, _ string) string {
			l.files["index.json"] = []byte("{")
			return "index.json"
		}),
		"layer flipped":  bad(func(l *layout, layer, _ string) string { return flip(l, layer) }),
		"config flipped": bad(func(l *layout, _, config string) string { return flip(l, config) }),
		"layer missing":  bad(func(l *layout, layer, _ string) string { return remove(l, layer) }),
		"config missing": bad(func(l *layout, _, config string) string { return remove(l, config) }),
		"blob path leaves": bad(func(l *layout, _, _ string) string {
			l.add("blobs/sha256/../../../../../tmp/berth-evil", []byte("x"))
			return ""
		}),
		"other diff id":        {must(image("berth.test/bad:1", goodLayer(), digest.FromString("another"))).tar(), digest.FromString("another").Encoded()},
		"layer is no tar":      {must(image("berth.test/bad:1", []byte(strings.Repeat("no tar ", 200)), "")).tar(), ""},
		"layer is a short tar": {must(image("berth.test/bad:1", goodLayer()[:515], "")).tar(), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := berth(d, bytes.NewReader(test.archive), "images", "import", "-")
			if name == "blob path leaves" {
				// Whether it is refused or ignored: nothing may be outside.
				if _, statErr := os.Lstat("/tmp/berth-evil"); statErr == nil {
					t.Fatal("a blob was written outside the store")
				}
				if err == nil {
					if out, err := berth(d, nil, "images", "rm", "berth.test/bad:1"); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
				return
			}
			if err == nil {
				t.Fatalf("imported: %s", out)
			}
			if !strings.Contains(out, test.want) || !strings.Contains(out, "berth: ") {
				t.Errorf("error does not name %q: %s", test.want, out)
			}
			if strings.Contains(out, "panic") || strings.Contains(out, "goroutine ") {
				t.Errorf("panicked: %s", out)
			}
			if out, err := berth(d, nil, "images", "ls", "--format", "json"); err != nil || strings.Contains(out, "bad:1") {
				t.Errorf("listed all the same: %s, %v", out, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := d.Check(ctx); err != nil {
		t.Error(err)
	}
	blobs, err := filepath.Glob(filepath.Join(d.Root, "io.containerd.content.v1.content/blobs/sha256/*"))
	if err != nil || len(blobs) > 0 {
		t.Errorf("content left after a collection: %v, %v", blobs, err)
	}
	layers, err := filepath.Glob(filepath.Join(d.Root, "io.containerd.snapshotter.v1.overlayfs/snapshots/*"))
	if err != nil || len(layers) > 0 {
		t.Errorf("snapshots left after a collection: %v, %v", layers, err)
	}
}

func must(l *layout, _, _ ocispec.Descriptor) *layout { return l }

// TestLayersThatLeave imports layers that try to write outside their root. What
// is right for each is to refuse it or to stay inside; either way the file
// beside the store is as it was and no new one appears.
func TestLayersThatLeave(t *testing.T) {
	d := start(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o777} }
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o777}
	}
	tests := map[string][]tar.Header{
		"dots":                      {file(up + victim[1:])},
		"absolute":                  {file(victim)},
		"dots in the middle":        {file("a/b/" + up + victim[1:])},
		"through an absolute link":  {link("out", outside), file("out/victim"), file("out/new")},
		"through a relative link":   {link("out", up+outside[1:]), file("out/victim"), file("out/new")},
		"onto a link":               {link("victim", victim), file("victim")},
		"link chain":                {link("a", "b"), link("b", outside), file("a/victim"), file("a/new")},
		"hard link to outside":      {hard("h", victim), file("h")},
		"hard link with dots":       {hard("h", up+victim[1:]), file("h")},
		"hard link through a link":  {link("out", outside), hard("h", "out/victim"), file("h")},
		"hard link to a link":       {link("l", victim), hard("h", "l"), file("h")},
		"whiteout of outside":       {file(up + outside[1:] + "/.wh.victim")},
		"whiteout through a link":   {link("out", outside), file("out/.wh.victim")},
		"opaque through a link":     {link("out", outside), file("out/.wh..wh..opq")},
		"whiteout of dots":          {file("a/.wh..."), file(".wh..")},
		"directory through a link":  {link("out", outside), {Name: "out/new/", Typeflag: tar.TypeDir, Mode: 0o777}},
		"mode through a link":       {link("out", outside), {Name: "out/", Typeflag: tar.TypeDir, Mode: 0}},
		"replaced directory":        {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, link("d", outside), file("d/new")},
		"owner through a last link": {link("victim", victim), {Name: "victim", Typeflag: tar.TypeChar, Mode: 0o666}},
	}
	before := listing(t, outside)
	for name, entries := range tests {
		t.Run(name, func(t *testing.T) {
			data := map[string][]byte{}
			for _, h := range entries {
				if h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, ".wh.") {
					data[h.Name] = []byte("overwritten")
				}
			}
			l, _, _ := image("berth.test/evil:1", tarOf(entries, data), "")
			out, err := berth(d, bytes.NewReader(l.tar()), "images", "import", "-")
			if after := listing(t, outside); after != before {
				t.Fatalf("outside the root was\n%s\nand is\n%s", before, after)
			}
			if err == nil {
				if out, err := berth(d, nil, "images", "rm", "berth.test/evil:1"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else if !strings.Contains(out, "berth: ") || strings.Contains(out, "panic") {
				t.Errorf("unclear error: %s", out)
			}
		})
	}
}

// listing is a text of everything in a directory: names, modes, owners, data.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s %v %d %v", path, info.Mode(), info.Size(), info.ModTime())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, " %s", data)
		}
		text.WriteByte('\n')
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return text.String()
}
