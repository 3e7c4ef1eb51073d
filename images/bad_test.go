package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
)

// refusal is an archive that must not be taken in.
type refusal struct {
	archive []byte
	reader  io.Reader // instead of archive
	o       ImportOptions
	want    error
	text    string // part of the error
}

// refuse imports each, and looks that nothing is left behind.
func refuse(t *testing.T, cases map[string]refusal) {
	w := newWorld(t)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w.t = t
			if tc.reader == nil {
				tc.reader = bytes.NewReader(tc.archive)
			}
			made, err := w.Import(bg, scope, tc.reader, tc.o, nil)
			if made != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, %v", made, err)
			}
			w.empty()
		})
	}
	// The world is not the worse for it.
	w.t = t
	w.mustImport(archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here))), ImportOptions{})
}

func filesOf(t *testing.T, pairs ...string) []byte {
	m := map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = []byte(pairs[i+1])
	}
	return tarOf(t, m)
}

// listOf is more of something than an archive may have.
func listOf(json string) string { return strings.TrimSuffix(strings.Repeat(json+",", 5000), ",") }

func TestBadArchives(t *testing.T) {
	whole := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here)))
	damaged := gzipped(t, whole)
	damaged[len(damaged)/2] ^= 0xff
	disk := errors.New("the network fails")
	bad := errdefs.ErrInvalidArgument
	refuse(t, map[string]refusal{
		"empty":            {archive: []byte{}, want: bad, text: "docker save"},
		"no tar":           {archive: bytes.Repeat([]byte("text "), 1000), want: bad, text: "no tar"},
		"empty tar":        {archive: filesOf(t), want: bad, text: "docker save"},
		"other tar":        {archive: filesOf(t, "a", "b"), want: bad, text: "docker save"},
		"truncated":        {archive: whole[:len(whole)/2], want: bad, text: "too early"},
		"truncated header": {archive: whole[:len(whole)/2&^511+100], want: bad, text: "too early"},
		"truncated gzip":   {archive: gzipped(t, whole)[:1000], want: bad, text: "too early"},
		"damaged gzip":     {archive: damaged, want: bad, text: "damaged gzip"},
		"failing reader":   {reader: io.MultiReader(bytes.NewReader(whole[:3000]), iotest.ErrReader(disk)), want: disk},
		"index no json":    {archive: filesOf(t, "index.json", "{"), want: bad, text: "index.json"},
		"manifest no json": {archive: filesOf(t, "manifest.json", "{"), want: bad, text: "manifest.json"},
		"no manifest":      {archive: filesOf(t, "index.json", "{}"), want: bad, text: "no manifest"},
		"no docker image":  {archive: filesOf(t, "manifest.json", "[]"), want: bad, text: "no image"},
		"large index":      {archive: filesOf(t, "index.json", strings.Repeat(" ", maxDocument+1)), want: bad, text: "bytes"},
		"many manifests":   {archive: filesOf(t, "index.json", `{"manifests":[`+listOf("{}")+"]}"), want: bad, text: "5000 manifests"},
		"many images":      {archive: filesOf(t, "manifest.json", "["+listOf("{}")+"]"), want: bad, text: "5000 images"},
		"many layers":      {archive: filesOf(t, "manifest.json", `[{"Config":"c","RepoTags":["a"],"Layers":[`+listOf(`"c"`)+"]}]", "c", "{}"), want: bad, text: "5000 layers"},
		"many names":       {archive: filesOf(t, "manifest.json", `[{"Config":"c","RepoTags":[`+listOf(`"a"`)+"]}]", "c", "{}"), want: bad, text: "5000 names"},
		"blob path":        {archive: filesOf(t, "blobs/sha256/abc", ""), want: bad, text: "no digest"},
		"wrong digest":     {archive: filesOf(t, "blobs/sha256/"+strings.Repeat("a", 64), "other"), want: bad, text: "save it again"},
		"bad platform":     {archive: whole, o: ImportOptions{Platform: "a/b/c/d"}, want: bad, text: "a/b/c/d"},
		"bad name":         {archive: whole, o: ImportOptions{Name: "A B"}, want: bad, text: `"A B"`},
		"bad snapshotter":  {archive: whole, o: ImportOptions{Snapshotter: "none"}, want: bad, text: "none"},
	})
}

// changed is the archive of an image whose layout or manifest was changed.
func changed(t *testing.T, do func(*testimage.Layout, *ocispec.Manifest)) []byte {
	t.Helper()
	l := layout(t, testimage.Gzip, small(t, "demo", here))
	d := l.Index.Manifests[0]
	var m ocispec.Manifest
	if err := json.Unmarshal(l.Blobs[d.Digest], &m); err != nil {
		t.Fatal(err)
	}
	do(l, &m)
	made, err := l.JSON(ocispec.MediaTypeImageManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	made.Annotations, made.Platform = d.Annotations, d.Platform
	l.Index.Manifests[0] = made
	return archiveOf(t, l)
}

// nested is an image in more indexes than are followed.
func nested(t *testing.T) []byte {
	t.Helper()
	l := layout(t, testimage.Gzip)
	d, err := l.Add(testimage.Gzip, small(t, "", here))
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 1 {
		if d, err = l.AddIndex(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.List(d, "demo"); err != nil {
		t.Fatal(err)
	}
	return archiveOf(t, l)
}

// many is an image whose indexes name the one before them, and the first one d, so often.
func many(t *testing.T, l *testimage.Layout, d ocispec.Descriptor, often ...int) []byte {
	t.Helper()
	var err error
	for _, n := range often {
		if d, err = l.AddIndex(slices.Repeat([]ocispec.Descriptor{d}, n)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.List(d, "demo"); err != nil {
		t.Fatal(err)
	}
	return archiveOf(t, l)
}

// large is a manifest with an annotation of so many bytes, and so many layers.
func large(l *testimage.Layout, bytes, layers int) ocispec.Descriptor {
	config := l.Blob(ocispec.MediaTypeImageConfig, []byte("{}"))
	return l.Blob(ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[%s],"annotations":{"a":%q}}`,
		config.MediaType, config.Digest, strings.TrimSuffix(strings.Repeat("{},", layers), ","), strings.Repeat("a", bytes)))
}

func TestBadImages(t *testing.T) {
	empty, fat, broad := layout(t, testimage.Gzip), layout(t, testimage.Gzip), layout(t, testimage.Gzip)
	lost := docker(t, testimage.None, small(t, "demo", here))
	for name := range lost {
		if strings.HasSuffix(name, "layer.tar") {
			delete(lost, name)
			break
		}
	}
	foreign := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", other)))
	top := digest.FromBytes(small(t, "", here).Layers[1]).String()
	bad, gone := errdefs.ErrInvalidArgument, errdefs.ErrNotFound
	type l = *testimage.Layout
	type m = *ocispec.Manifest
	refuse(t, map[string]refusal{
		"no name":             {archive: archiveOf(t, layout(t, testimage.Gzip, small(t, "", here))), want: bad, text: "give it a name"},
		"no docker name":      {archive: tarOf(t, docker(t, testimage.None, small(t, "", here))), want: bad, text: "name"},
		"lost docker file":    {archive: tarOf(t, lost), want: gone, text: "layer.tar"},
		"other platform":      {archive: foreign, want: gone, text: "linux/s390x"},
		"other platform, all": {archive: foreign, o: ImportOptions{AllPlatforms: true}, want: gone, text: "leave it packed"},
		"nested index":        {archive: nested(t), want: bad, text: "indexes in each other"},
		"indexes of indexes":  {archive: many(t, empty, ocispec.Descriptor{}, 0, 100, 100), want: bad, text: "more than 4096 manifests"},
		"fat manifests":       {archive: many(t, fat, large(fat, 1<<20, 0), 40), want: bad, text: "more than 33554432 bytes"},
		"a broad manifest":    {archive: many(t, broad, large(broad, 0, 5000), 1), want: bad, text: "5000 layers"},
		"missing layer":       {archive: changed(t, func(l l, m m) { delete(l.Blobs, m.Layers[1].Digest) }), want: gone, text: "layer 2"},
		"missing config":      {archive: changed(t, func(l l, m m) { delete(l.Blobs, m.Config.Digest) }), want: gone, text: "config"},
		"wrong size":          {archive: changed(t, func(_ l, m m) { m.Layers[0].Size++ }), want: bad, text: "bytes"},
		"bad digest":          {archive: changed(t, func(_ l, m m) { m.Layers[0].Digest = "sha256:x" }), want: bad, text: "layer 1"},
		"layers and diff ids": {archive: changed(t, func(_ l, m m) { m.Layers = m.Layers[:1] }), want: bad, text: "1 layers, its config 2"},
		"wrong diff id":       {archive: changed(t, func(_ l, m m) { m.Layers[1] = m.Layers[0] }), want: bad, text: "the config says " + top},
		"no layer":            {archive: changed(t, func(_ l, m m) { m.Layers[1].MediaType = "text/plain" }), want: errdefs.ErrNotImplemented, text: "text/plain"},
		"damaged layer": {archive: changed(t, func(l l, m m) {
			m.Layers[1] = l.Blob(ocispec.MediaTypeImageLayerGzip, l.Blobs[m.Layers[1].Digest][:50])
		}), want: bad, text: "layer 2"},
		"layer that leaves": {archive: changed(t, func(l l, m m) {
			m.Layers[1] = l.Blob(ocispec.MediaTypeImageLayer, layer(t, testimage.File{Name: "x", Hard: "../../../../etc/passwd"}))
		}), want: bad, text: "target"},
		"artifact":                {archive: changed(t, func(_ l, m m) { m.Config.MediaType = "application/vnd.helm" }), want: bad, text: "no container image"},
		"no config":               {archive: changed(t, func(_ l, m m) { m.Config = ocispec.Descriptor{} }), want: bad, text: "no config"},
		"both index and manifest": {archive: changed(t, func(_ l, m m) { m.MediaType = ocispec.MediaTypeImageIndex }), want: bad, text: "fields"},
	})
}

// FuzzImport: whatever the archive, there is an image that is whole, or none.
func FuzzImport(f *testing.F) {
	image := small(f, "demo", here)
	f.Add(archiveOf(f, layout(f, testimage.None, image)))
	f.Add(tarOf(f, docker(f, testimage.None, image)))
	f.Add(gzipped(f, archiveOf(f, layout(f, testimage.Zstd, image))))
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		w.t = t
		made, err := w.Import(bg, scope, bytes.NewReader(archive), ImportOptions{Name: "fuzzed"}, nil)
		if (err == nil) != (len(made) > 0) {
			t.Fatalf("%v, %v", made, err)
		}
		for _, one := range made {
			if chain, err := w.Unpack(bg, scope, one.Target, UnpackOptions{}, nil); chain != one.ChainID || err != nil {
				t.Errorf("%+v: %s, %v", one, chain, err)
			}
			if err := w.db.Images(scope).Delete(bg, one.Name, nil); err != nil {
				t.Error(err)
			}
		}
		w.empty()
	})
}
