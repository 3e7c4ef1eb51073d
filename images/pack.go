package images

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
)

// pack compresses a layer with gzip, which makes a blob of its own.
func (l *loader) pack(ctx context.Context, d ocispec.Descriptor) (_ ocispec.Descriptor, err error) {
	from, err := l.blobs.Open(ctx, d.Digest)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	w, err := l.blobs.Writer(ctx, l.prefix+"gzip-"+d.Digest.String(), content.Expect{})
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, w.End(ctx, err == nil)) }()
	z, plain := gzip.NewWriter(w), digest.Canonical.Digester()
	if _, err := io.CopyBuffer(io.MultiWriter(z, plain.Hash()), io.NewSectionReader(from, 0, from.Size()), l.buf); err != nil {
		return d, err
	}
	if err := z.Close(); err != nil {
		return d, err
	}
	status, err := w.Status()
	if err != nil {
		return d, err
	}
	made := ocispec.Descriptor{MediaType: dockerLayerGzip, Digest: w.Digest(), Size: status.Offset}
	mark := map[string]string{labels.Uncompressed: plain.Digest().String()}
	if err := w.Commit(ctx, made.Size, made.Digest, mark); err != nil && !errdefs.IsAlreadyExists(err) {
		return d, err
	}
	return made, nil
}
