package images

import (
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/metadata"
)

// label puts on the blobs of an image the labels by which each keeps the next
// from collection.
func label(ctx context.Context, blobs *metadata.Blobs, i *image) error {
	for _, node := range i.indexes {
		if err := addLabels(ctx, blobs, node.desc.Digest, childLabels(node.children, i.keeps)); err != nil {
			return err
		}
	}
	all := func(ocispec.Descriptor) bool { return true }
	for _, m := range i.manifests {
		if err := addLabels(ctx, blobs, m.desc.Digest, childLabels(m.parts(), all)); err != nil {
			return err
		}
	}
	for _, m := range i.documents {
		config := func(d ocispec.Descriptor) bool { return d.Digest == m.doc.Config.Digest }
		if err := addLabels(ctx, blobs, m.desc.Digest, childLabels(m.parts(), config)); err != nil {
			return err
		}
	}
	return nil
}

// addLabels sets labels of a blob and leaves its other ones alone.
func addLabels(ctx context.Context, blobs *metadata.Blobs, d digest.Digest, add map[string]string) error {
	if len(add) == 0 {
		return nil
	}
	var mask []string
	for _, key := range slices.Sorted(maps.Keys(add)) {
		mask = append(mask, "labels."+key)
	}
	_, err := blobs.Update(ctx, &contentapi.Info{Digest: d.String(), Labels: add}, mask...)
	return err
}
