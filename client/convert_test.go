package client

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/client/fakedaemon"
)

// TestConvertBadConfig: a config that nobody has looked at so far, as the image was never
// unpacked, is refused.
func TestConvertBadConfig(t *testing.T) {
	for _, id := range []digest.Digest{"", "x", "none:0123", "sha256:0123"} {
		d := fakedaemon.New(t)
		c := connectTo(t, d, Options{})
		layer := d.AddBlob([]byte("layer"))
		layer.MediaType = imagespec.MediaTypeImageLayer
		config := d.AddJSON(t, imagespec.MediaTypeImageConfig, imagespec.Image{RootFS: imagespec.RootFS{DiffIDs: []digest.Digest{id}}})
		d.AddImage("x", d.AddJSON(t, imagespec.MediaTypeImageManifest, imagespec.Manifest{Config: config, Layers: []imagespec.Descriptor{layer}}))
		image, err := c.FindImage(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Convert(t.Context(), image, ConvertOptions{Name: "y", Layers: LayersZstd}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("diff id %q: %v", id, err)
		}
	}
}
