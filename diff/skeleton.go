// Package diff applies layers to mounts. It does not make layers, and it knows
// no images: what a layer belongs to is told by package images.
package diff

import (
	"context"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/mount"
)

// Options say how to apply a layer. The zero value is right for most.
type Options struct {
	SyncFS  bool  // flush the file system afterwards
	MaxSize int64 // bytes that the uncompressed layer may have; 0: DefaultMaxSize
}

// Result describes what was applied: the uncompressed layer.
type Result struct {
	MediaType string        // application/vnd.oci.image.layer.v1.tar
	DiffID    digest.Digest // of the whole uncompressed stream, trailing bytes included
	Size      int64         // bytes of that stream
}

// Apply applies the layer in r, a blob of the given media type, to mounts.
func Apply(ctx context.Context, r io.Reader, mediaType string, mounts []mount.Mount, o Options) (Result, error) {
	return Result{}, errdefs.ErrNotImplemented
}
