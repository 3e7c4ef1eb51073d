package client

import (
	"context"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/services/images/v1"
)

// TagImage gives an image one more name, in short or in full. Another image that had
// the name loses it. InvalidArgument: it is no name for an image.
func (c *Client) TagImage(ctx context.Context, image *images.Image, name string) (*images.Image, error) {
	full, err := imageName(name)
	if err != nil {
		return nil, err
	}
	target := image.GetTarget()
	return c.nameImage(ctx, full, imagespec.Descriptor{
		MediaType: target.GetMediaType(), Digest: digest.Digest(target.GetDigest()), Size: target.GetSize(),
	})
}
