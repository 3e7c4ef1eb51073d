package harness

import (
	"fmt"
	"math/rand/v2"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
)

// RandomImages are images whose files don't compress: all lie on one base, and
// each has two layers of its own, the next one more.
type RandomImages struct {
	Base, Layer int // files in the base, and in every other layer
	File        int // bytes that a file has at most
}

// Make makes one image for each name.
func (o RandomImages) Make(r *rand.Rand, names ...string) ([]*testimage.Layout, error) {
	base, err := o.layer(r, "base", o.Base)
	if err != nil {
		return nil, err
	}
	var all []*testimage.Layout
	for n, name := range names {
		image := testimage.Image{Name: name, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Layers: [][]byte{base}}
		for l := range 2 + n {
			layer, err := o.layer(r, fmt.Sprint("layer", l), o.Layer)
			if err != nil {
				return nil, err
			}
			image.Layers = append(image.Layers, layer)
		}
		layout, err := testimage.NewLayout(testimage.Gzip, image)
		if err != nil {
			return nil, err
		}
		all = append(all, layout)
	}
	return all, nil
}

func (o RandomImages) layer(r *rand.Rand, dir string, files int) ([]byte, error) {
	all := []testimage.File{{Name: dir + "/"}}
	for n := range files {
		body := make([]byte, r.IntN(o.File))
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		all = append(all, testimage.File{Name: fmt.Sprintf("%s/file%d", dir, n), Body: string(body)})
	}
	return testimage.Layer(all...)
}
