package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
)

// TestBomb: a layer that is small while it is compressed does not fill the disk.
func TestBomb(t *testing.T) {
	for _, kind := range []string{testimage.Gzip, testimage.Zstd} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.Layers.MaxSize = 1 << 20
			image := testimage.Image{Platform: here, Layers: [][]byte{
				layer(t, testimage.File{Name: "a", Body: "a"}),
				layer(t, testimage.File{Name: "zeros", Body: strings.Repeat("\x00", 64<<20)}),
			}}
			l := layout(t, kind)
			d, err := l.Add(kind, image)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.Pull(bg, scope, shelve(t, l, d), PullOptions{}, nil)
			if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), "layer 2") {
				t.Error(err)
			}
			w.empty()
		})
	}
}

// hostile makes documents that name things, out of what a fuzzer makes up.
type hostile struct {
	l      *testimage.Layout
	target ocispec.Descriptor
}

// newHostile puts three documents of a stranger's into an image: the target is the
// first, and they may name each other.
func newHostile(t testing.TB, index, manifest, config []byte) hostile {
	l := layout(t, testimage.Gzip)
	c := l.Blob(ocispec.MediaTypeImageConfig, config)
	fill := func(doc []byte) []byte {
		doc = bytes.ReplaceAll(doc, []byte("111111"), fmt.Append(nil, c.Size))
		doc = bytes.ReplaceAll(doc, []byte("CONFIG"), []byte(c.Digest))
		return bytes.ReplaceAll(doc, []byte("LAYER"), []byte(digest.FromBytes(emptyLayer)))
	}
	l.Blob(ocispec.MediaTypeImageLayerGzip, emptyLayer)
	m := l.Blob(ocispec.MediaTypeImageManifest, fill(manifest))
	index = bytes.ReplaceAll(fill(index), []byte("MANIFEST"), []byte(m.Digest))
	index = bytes.ReplaceAll(index, []byte("222222"), fmt.Append(nil, m.Size))
	mediaType := ocispec.MediaTypeImageIndex
	if !bytes.Contains(index, []byte("manifests")) {
		mediaType = ocispec.MediaTypeImageManifest
	}
	return hostile{l, l.Blob(mediaType, index)}
}

// plainLayer is a layer of one empty file, and emptyLayer the same compressed.
var plainLayer, emptyLayer = func() (plain, packed []byte) {
	plain, err := testimage.Layer(testimage.File{Name: "f"})
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, wrote := z.Write(plain)
	if err := errors.Join(err, wrote, z.Close()); err != nil {
		panic(err)
	}
	return plain, out.Bytes()
}()

// seeds are documents as they should be, and ones that are wrong on purpose.
func seeds(t testing.TB) (index, manifest, config []byte) {
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	schema := specs.Versioned{SchemaVersion: 2}
	index = marshal(ocispec.Index{Versioned: schema, Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: "MANIFEST", Size: 222222, Platform: &here}}})
	manifest = marshal(ocispec.Manifest{Versioned: schema, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: "CONFIG", Size: 111111},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: "LAYER", Size: int64(len(emptyLayer))}}})
	config = marshal(ocispec.Image{Platform: here, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plainLayer)}}})
	return index, manifest, config
}

// FuzzDocuments pulls images whose documents a stranger wrote: each ends in an image
// that is whole, or in an error and nothing.
func FuzzDocuments(f *testing.F) {
	index, manifest, config := seeds(f)
	goodIndex, goodManifest, goodConfig := index, manifest, config
	f.Add(index, manifest, config) // which is as it should be
	f.Add(manifest, manifest, config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":-1}]}`), manifest, config)
	f.Add([]byte(`{"manifests":[{"mediaType":"`+ocispec.MediaTypeImageIndex+`","digest":"MANIFEST","size":9223372036854775807}]}`), manifest, config)
	f.Add([]byte(`{"manifests":null,"config":{},"layers":[]}`), []byte(`[]`), []byte(`null`))
	f.Add(index, []byte(`{"config":{"digest":"CONFIG","mediaType":"application/vnd.oci.image.config.v1+json"},"layers":[{"digest":"LAYER","size":-5}]}`), []byte(`{"rootfs":{"diff_ids":["sha256:"]}}`))
	f.Add(index, []byte(`{"config":{"digest":"MANIFEST"},"layers":[{"digest":"CONFIG","mediaType":"text/html"}]}`), []byte(`{"os":5}`))
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		if len(index)+len(manifest)+len(config) > 64<<10 {
			t.Skip()
		}
		w.t = t
		h := newHostile(t, index, manifest, config)
		for _, o := range []PullOptions{{}, {NoUnpack: true, AllPlatforms: true}} {
			made, err := w.Pull(bg, scope, shelve(t, h.l, h.target), o, nil)
			if err != nil {
				right := bytes.Equal(index, goodIndex) && bytes.Equal(manifest, goodManifest) && bytes.Equal(config, goodConfig)
				if right {
					t.Error(err)
				}
				if names := w.names(); names != "" {
					t.Errorf("failed and named %s: %v", names, err)
				}
				continue
			}
			c, err := w.choose(o.AllPlatforms, "")
			if err != nil {
				t.Fatal(err)
			}
			c.artifact = true
			if _, err := resolve(bg, w.db.Blobs(scope), made.Target, c); err != nil {
				t.Errorf("named, and not whole: %v", err)
			}
			if err := w.db.Images(scope).Delete(bg, made.Name, nil); err != nil {
				t.Fatal(err)
			}
		}
		leases, err := w.db.Leases(scope).List(bg)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases { // of pulls that may be tried again
			if err := w.db.Leases(scope).Delete(bg, l.Id); err != nil {
				t.Fatal(err)
			}
		}
		w.collect()
		if left := w.content(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}
