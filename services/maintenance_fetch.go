package services

import (
	"bytes"
	"context"
	"io"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
)

// registries fetches for repairs, as nobody: the daemon keeps no passwords.
type registries struct{ client *remotes.Client }

// NewFetcher gives what repairs fetch blobs with.
func NewFetcher(client *remotes.Client) metadata.Fetcher {
	if client == nil {
		return nil
	}
	return registries{client}
}

// Fetch implements metadata.Fetcher.
func (r registries) Fetch(ctx context.Context, host, repository string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	from, err := r.client.Open(remotes.Reference{Registry: host, Repository: repository, Digest: desc.Digest}, remotes.Access{})
	if err != nil {
		return nil, err
	}
	if !remotes.IsManifest(desc.MediaType) {
		blob, err := from.Blob(ctx, desc, 0)
		if err == nil || desc.MediaType != "" || !errdefs.IsNotFound(err) {
			return blob, err
		}
	}
	// Registries have manifests in a place of their own.
	_, body, err := from.Get(ctx)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}
