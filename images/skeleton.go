// Package images owns what an image means: which of its blobs belong to which
// platform, what keeps them from collection, how an archive becomes an image
// and an image a chain of snapshots.
package images

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/metadata"
)

// Store makes images out of archives and snapshots out of images.
type Store struct {
	DB          *metadata.DB
	Platform    ocispec.Platform // of the images to choose
	Snapshotter string           // default for unpacking
	Log         *slog.Logger
}

// ImportOptions say what to take from an archive. The zero value imports and
// unpacks the daemon's own platform.
type ImportOptions struct {
	Name         string // for a single image that the archive does not name
	Snapshotter  string // to unpack for; empty: the store's
	Platform     string // os/arch[/variant]; empty: the store's
	AllPlatforms bool   // keep the content of every platform
	NoUnpack     bool   // leave the image packed
}

// UnpackOptions say what to unpack, and where to.
type UnpackOptions struct {
	Snapshotter string // empty: the store's
	Platform    string // os/arch[/variant]; empty: the store's
}

// What happens to an object.
const (
	Loading   = "loading"
	Loaded    = "loaded"
	Unpacking = "unpacking"
	Unpacked  = "unpacked"
)

// Progress of one object. A later one of the same object replaces an earlier.
type Progress struct {
	Digest digest.Digest
	Status string // Loading...
	Offset int64  // bytes done
	Total  int64  // bytes expected; 0 where it is not known
}

// Imported is an image that an import made or updated.
type Imported struct {
	Name    string
	Target  ocispec.Descriptor
	ChainID digest.Digest // of the unpacked top layer; empty if not unpacked
}

// Import reads an archive from r and makes its images.
func (s *Store) Import(ctx context.Context, scope metadata.Scope, r io.Reader, o ImportOptions, progress func(Progress)) ([]Imported, error) {
	return nil, errdefs.ErrNotImplemented
}

// Unpack makes snapshots of the layers of target and returns the chain id of
// the top one.
func (s *Store) Unpack(ctx context.Context, scope metadata.Scope, target ocispec.Descriptor, o UnpackOptions, progress func(Progress)) (digest.Digest, error) {
	return "", errdefs.ErrNotImplemented
}
