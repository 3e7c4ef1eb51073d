package images

import (
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/labels"
)

// Docker's names for what OCI has others for, and those of checkpoints.
const (
	dockerManifest   = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex      = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig     = "application/vnd.docker.container.image.v1+json"
	dockerLayer      = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd  = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	checkpointImage  = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	checkpointConfig = "application/vnd.containerd.container.checkpoint.config.v1+proto"
	erofsLayer       = "application/vnd.erofs.layer.v1"
)

// Kind is what a blob is to an image.
type Kind int

const (
	Other    Kind = iota // nothing that an image is made of
	Index                // a choice of manifests, by platform
	Manifest             // names a config and layers
	Config               // how to run it
	Layer                // files
)

// KindOf tells what a media type stands for.
func KindOf(mediaType string) Kind {
	switch mediaType {
	case ocispec.MediaTypeImageIndex, dockerIndex:
		return Index
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return Manifest
	case ocispec.MediaTypeImageConfig, dockerConfig, checkpointImage, checkpointConfig:
		return Config
	case erofsLayer:
		return Layer
	}
	if _, layer := diff.Compression(mediaType); layer {
		return Layer
	}
	return Other
}

// childLabel is the label by which a parent keeps a child of this media type.
// One that ends in a dot gets a number appended.
func childLabel(mediaType string) string {
	switch KindOf(mediaType) {
	case Manifest:
		return labels.GCRefManifest
	case Config:
		return labels.GCRefConfig
	case Layer:
		return labels.GCRefLayer
	}
	return labels.GCRefOther
}

// childLabels gives the labels of a parent for those of its children that keep
// answers for. Numbers count all children of a sort, so that they don't depend
// on which are kept.
func childLabels(children []ocispec.Descriptor, keep func(ocispec.Descriptor) bool) map[string]string {
	out, count := map[string]string{}, map[string]int{}
	for _, child := range children {
		label := childLabel(child.MediaType)
		n := count[label]
		count[label]++
		if n > 0 || label[len(label)-1] == '.' {
			label += strconv.Itoa(n)
		}
		if keep(child) {
			out[label] = child.Digest.String()
		}
	}
	return out
}
