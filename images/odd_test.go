package images

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
)

// oddLayout makes an image of what images may have and seldom do. Each part is put
// together by hand, as testimage makes images as they should be.
type oddLayout struct {
	*testimage.Layout
	t testing.TB
}

func (o oddLayout) pack(mediaType string, tar []byte) ocispec.Descriptor {
	o.t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(tar); err != nil {
		o.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		o.t.Fatal(err)
	}
	return o.Blob(mediaType, out.Bytes())
}

func (o oddLayout) json(mediaType string, v any) ocispec.Descriptor {
	o.t.Helper()
	d, err := o.JSON(mediaType, v)
	if err != nil {
		o.t.Fatal(err)
	}
	return d
}

func (o oddLayout) config(tars ...[]byte) ocispec.Descriptor {
	c := ocispec.Image{Platform: here, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, tar := range tars {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(tar))
	}
	return o.json(ocispec.MediaTypeImageConfig, c)
}

func (o oddLayout) manifest(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Descriptor {
	return o.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
}

// odd makes an image and its target.
var odd = map[string]func(o oddLayout) ocispec.Descriptor{
	"nested indexes": func(o oddLayout) ocispec.Descriptor {
		tar := layer(o.t, testimage.File{Name: "a", Body: "a"})
		m := o.manifest(o.config(tar), o.pack(ocispec.MediaTypeImageLayerGzip, tar))
		m.Platform = &here
		for range 3 {
			index, err := o.AddIndex(m)
			if err != nil {
				o.t.Fatal(err)
			}
			m = index
		}
		return m
	},
	"a config that two manifests share": func(o oddLayout) ocispec.Descriptor {
		tar := layer(o.t, testimage.File{Name: "a", Body: "a"})
		config, packed := o.config(tar), o.pack(ocispec.MediaTypeImageLayerGzip, tar)
		one, two := o.manifest(config, packed), o.manifest(config, o.Blob(ocispec.MediaTypeImageLayer, tar))
		one.Platform, two.Platform = &here, &other
		index, err := o.AddIndex(two, one)
		if err != nil {
			o.t.Fatal(err)
		}
		return index
	},
	"the same layer three times": func(o oddLayout) ocispec.Descriptor {
		tar := layer(o.t, testimage.File{Name: "a", Body: "a"})
		packed := o.pack(ocispec.MediaTypeImageLayerGzip, tar)
		return o.manifest(o.config(tar, tar, tar), packed, packed, packed)
	},
	"empty layers": func(o oddLayout) ocispec.Descriptor {
		empty, tar := layer(o.t), layer(o.t, testimage.File{Name: "a", Body: "a"})
		packed := o.pack(ocispec.MediaTypeImageLayerGzip, empty)
		return o.manifest(o.config(empty, tar, empty), packed, o.pack(ocispec.MediaTypeImageLayerGzip, tar), packed)
	},
	"no layers": func(o oddLayout) ocispec.Descriptor { return o.manifest(o.config()) },
	"a foreign layer that the registry has": func(o oddLayout) ocispec.Descriptor {
		tar := layer(o.t, testimage.File{Name: "a", Body: "a"})
		packed := o.pack(foreignLayer+"+gzip", tar)
		packed.URLs = []string{"https://elsewhere.test/layer"}
		return o.manifest(o.config(tar), packed)
	},
}

// TestOddImages: an image of any make is whole from the moment at which it is listed,
// and stays so.
func TestOddImages(t *testing.T) {
	for name, build := range odd {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			o := oddLayout{layout(t, testimage.Gzip), t}
			target := build(o)
			listed := make(chan error)
			stop := make(chan struct{})
			go func() { listed <- w.wholeOnceListed(stop) }()
			for range 2 {
				if _, err := w.Pull(bg, scope, shelve(t, o.Layout, target), PullOptions{}, nil); err != nil {
					t.Fatal(err)
				}
				w.collect()
				if err := w.whole("registry.test/a/b:1"); err != nil {
					t.Errorf("after a collection: %v", err)
				}
			}
			close(stop)
			if err := <-listed; err != nil {
				t.Errorf("when it was listed: %v", err)
			}
			w.drop("registry.test/a/b:1")
		})
	}
}

// whole looks whether everything of a listed image is there, unpacked.
func (w *world) whole(name string) error {
	image, err := w.db.Images(scope).Get(bg, name)
	if err != nil {
		return err
	}
	target := ocispec.Descriptor{MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size}
	c, err := w.choose(false, "")
	if err != nil {
		return err
	}
	found, err := resolve(bg, w.db.Blobs(scope), target, c)
	if err != nil {
		return err
	}
	config, err := readConfig(bg, w.db.Blobs(scope), found.chosen[0].doc.Config)
	if err != nil || len(config.RootFS.DiffIDs) == 0 {
		return err
	}
	sn, err := w.db.Snapshotter(scope, "overlayfs")
	if err != nil {
		return err
	}
	_, err = sn.Stat(bg, ChainID(config.RootFS.DiffIDs).String())
	return err
}

// wholeOnceListed looks at the first image that is listed, as soon as it is.
func (w *world) wholeOnceListed(stop <-chan struct{}) error {
	for {
		all, err := w.db.Images(metadata.Scope{Namespace: scope.Namespace}).List(bg)
		if err != nil {
			return err
		}
		if len(all) > 0 {
			return w.whole(all[0].Name)
		}
		select {
		case <-stop:
			return nil
		case <-time.After(100 * time.Microsecond): // no event comes before the row
		}
	}
}

// TestForeignLayerElsewhere: a layer that only other addresses have is not fetched
// from them, and the error says so.
func TestForeignLayerElsewhere(t *testing.T) {
	w := newWorld(t)
	o := oddLayout{layout(t, testimage.Gzip), t}
	target := odd["a foreign layer that the registry has"](o)
	for d := range o.Blobs {
		if bytes.HasPrefix(o.Blobs[d], []byte{0x1f, 0x8b}) {
			delete(o.Blobs, d)
		}
	}
	_, err := w.Pull(bg, scope, shelve(t, o.Layout, target), PullOptions{}, nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "elsewhere.test") {
		t.Error(err)
	}
	w.empty()
}
