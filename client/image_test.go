package client

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/client/fakedaemon"
)

func TestFindImage(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{})
	target := d.AddManifest(t, imagespec.Image{})
	other := d.AddManifest(t, imagespec.Image{Author: "other"})
	d.AddImage("docker.io/library/busybox:latest", target)
	d.AddImage("docker.io/library/again:1", target)
	d.AddImage("docker.io/me/tool:2", other)
	d.AddImage("raw:latest", other) // as some tools write it
	hex := target.Digest.Encoded()
	for name, want := range map[string]string{
		"busybox":                          "docker.io/library/busybox:latest",
		"busybox:latest":                   "docker.io/library/busybox:latest",
		"docker.io/library/busybox:latest": "docker.io/library/busybox:latest",
		"docker.io/busybox":                "docker.io/library/busybox:latest",
		"me/tool:2":                        "docker.io/me/tool:2",
		"raw:latest":                       "raw:latest",
		"raw":                              "raw:latest",
		hex:                                "docker.io/library/again:1",
		hex[:8]:                            "docker.io/library/again:1",
		"sha256:" + hex[:12]:               "docker.io/library/again:1",
		"busybox:1":                        "",
		"me/tool":                          "",
		"BUSYBOX":                          "",
		"":                                 "",
		"ffff":                             "",
		"a b":                              "",
	} {
		got, err := c.FindImage(t.Context(), name)
		if want == "" {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%q: %v, %v; want NotFound", name, got, err)
			}
			continue
		}
		if err != nil || got.GetName() != want {
			t.Errorf("%q: %q, %v; want %q", name, got.GetName(), err, want)
		}
	}
}

func TestImageConfig(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{})
	own := platforms.DefaultSpec()
	foreign := imagespec.Platform{OS: "linux", Architecture: "s390x"}
	target := d.AddManifest(t, imagespec.Image{Author: "me"})
	target.Platform = &own
	wrong := d.AddManifest(t, imagespec.Image{Author: "wrong"})
	wrong.Platform = &foreign
	absent := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageManifest, Digest: "sha256:" + "00000000000000000000000000000000000000000000000000000000000000aa", Platform: &own}
	index := func(manifests ...imagespec.Descriptor) imagespec.Descriptor {
		return d.AddJSON(t, imagespec.MediaTypeImageIndex, imagespec.Index{Manifests: manifests})
	}
	nested := target
	for range maxIndexes + 1 {
		nested = index(nested)
	}
	for name, test := range map[string]struct {
		target imagespec.Descriptor
		kind   func(error) bool // nil: found
	}{
		"manifest":               {target, nil},
		"index":                  {index(wrong, target), nil},
		"index in an index":      {index(index(wrong, target)), nil},
		"one whose content went": {index(absent, target), nil},
		"only foreign ones":      {index(wrong), errdefs.IsNotFound},
		"nothing there":          {index(absent), errdefs.IsNotFound},
		"empty":                  {index(), errdefs.IsNotFound},
		"without end":            {nested, errdefs.IsInvalidArgument},
		"no image":               {imagespec.Descriptor{MediaType: "text/plain", Digest: target.Digest}, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			d.AddImage("x", test.target)
			image, err := c.FindImage(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			config, err := c.ImageConfig(t.Context(), image)
			if test.kind != nil {
				if !test.kind(err) {
					t.Errorf("got %+v, %v", config, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if config.Image.Author != "me" || config.Manifest.Digest != target.Digest {
				t.Errorf("got %+v", config)
			}
			if want := identity.ChainID(config.Image.RootFS.DiffIDs); config.ChainID != want {
				t.Errorf("chain id %q, want %q", config.ChainID, want)
			}
			if config.Size <= 1000 {
				t.Errorf("size %d is without the layer", config.Size)
			}
		})
	}
}

func TestImageConfigOfBrokenContent(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{})
	broken := d.AddBlob([]byte("{"))
	broken.MediaType = imagespec.MediaTypeImageManifest
	d.AddImage("x", broken)
	image, err := c.FindImage(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ImageConfig(t.Context(), image); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}
