package diff

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
)

// DefaultMaxSize is the limit on an uncompressed layer where Options has none.
const DefaultMaxSize = archive.DefaultMaxSize

// Options say how to apply a layer. The zero value is right for most.
type Options struct {
	SyncFS  bool  // flush the file system afterwards
	MaxSize int64 // bytes that the uncompressed layer may have; 0: DefaultMaxSize
	// Lower is for a layer that is laid down before those below it are there. The
	// mounts are then a bind of the directory that will be the upper one of an
	// overlay, and Lower gives the directories below it, nearest first. It is called
	// at most once, when something of the layer depends on them, and may block.
	Lower func() ([]string, error)
	// Processors are programs for layers that are wrapped in more than is built in,
	// or that are to do what is; the first that accepts a media type is taken.
	Processors []Processor
	// Payloads are what processors are told beside the stream, by their ID.
	Payloads map[string][]byte
}

// Result describes what was applied: the uncompressed layer.
type Result struct {
	MediaType string        // application/vnd.oci.image.layer.v1.tar
	DiffID    digest.Digest // of the whole uncompressed stream, trailing bytes included
	Size      int64         // bytes of that stream
	Root      bool          // the layer says what the root directory is like
}

// Apply applies the layer in r, a blob of the given media type, to mounts. A
// single overlay or bind mount is not mounted: its upper directory or source is
// written. After an error part of the layer may be there. A Read of r that is
// under way is waited for, also when ctx ends.
//
// A media type that is not a layer's, or that needs more than decompression,
// is Unimplemented; a damaged layer, or mounts that can't be written,
// InvalidArgument; too large a layer ResourceExhausted.
func Apply(ctx context.Context, r io.Reader, mediaType string, mounts []mount.Mount, o Options) (Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	uncompressed, err := unwrap(ctx, r, mediaType, o)
	if err != nil {
		return Result{}, err
	}
	defer uncompressed.close()
	result := Result{MediaType: ociLayer}
	err = onto(ctx, mounts, o.Lower, func(root string, form archive.Options) error {
		form.Header = func(h *tar.Header) error {
			result.Root = result.Root || h.Typeflag == tar.TypeDir && path.Clean("/"+h.Name) == "/"
			return nil
		}
		result.DiffID, result.Size, err = lay(ctx, cancel, uncompressed, root, form, o)
		if err == nil && o.SyncFS {
			err = durable.SyncFS("diff.apply", root)
		}
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("apply layer: %w", err)
	}
	return result, nil
}

// lay extracts and hashes a stream. No goroutine of it is left when it returns:
// cancel ends what r waits for.
func lay(ctx context.Context, cancel func(), r io.Reader, root string, form archive.Options, o Options) (digest.Digest, int64, error) {
	form.MaxSize = o.MaxSize
	if form.MaxSize <= 0 {
		form.MaxSize = DefaultMaxSize
	}
	f := start(ctx, r, form.MaxSize)
	defer f.done.Wait()
	defer cancel()
	if _, err := archive.Apply(ctx, root, f, form); err != nil {
		return "", 0, err
	}
	return f.finish()
}
