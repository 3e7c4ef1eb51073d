package remotes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

// Pushed says how a blob came to be in a repository.
type Pushed string

// How a blob came to be in a repository.
const (
	Existed  Pushed = "already exists"
	Mounted  Pushed = "mounted"
	Uploaded Pushed = "uploaded"
)

// maxMounts is how many other repositories are tried for a blob.
const maxMounts = 3

// errUnmounted ends a mount that the registry would have us upload for.
var errUnmounted = errors.New("not mounted")

// pusher is the host that takes what is pushed: the first that may. An image whose
// parts are at several hosts would be at none.
func (r *Repository) pusher(op string) (*endpoint, error) {
	list, err := r.able(op, Push)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// PushBlob makes the repository have a blob: nothing is done if it is there; it is
// mounted from one of the other repositories of the registry (paths, as
// library/alpine) if one has it; else it is uploaded, from the start after each
// failure that may pass. open gives the content each time.
func (r *Repository) PushBlob(ctx context.Context, desc ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (Pushed, error) {
	op := "push blob " + desc.Digest.String() + " to"
	if err := checkDescriptor(desc, 0); err != nil {
		return "", fmt.Errorf("%s %s: %w", op, r.ref, err)
	}
	e, err := r.pusher(op)
	if err != nil {
		return "", err
	}
	if err := e.pool.blobs.take(ctx); err != nil {
		return "", e.problem(ctx, op, err)
	}
	defer e.pool.blobs.free()
	var how Pushed
	for attempt := 0; ; attempt++ {
		how, err = r.pushOnce(ctx, e, op, desc, from, open)
		if err == nil || !errdefs.IsUnavailable(err) && !(attempt == 0 && errdefs.IsUnauthorized(err)) || attempt >= r.client.config.Attempts-1 || ctx.Err() != nil {
			return how, err
		}
		from = nil
		if r.pause(ctx, attempt) != nil {
			return "", err
		}
	}
}

func (r *Repository) pushOnce(ctx context.Context, e *endpoint, op string, desc ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (Pushed, error) {
	err := r.small(ctx, e, op, func(ctx context.Context, e *endpoint) error { return e.exists(e.pushing(ctx), desc) })
	if err == nil {
		return Existed, nil
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	repository := e.repository()
	for _, other := range from[:min(len(from), maxMounts)] {
		if other == r.ref.Repository {
			continue
		}
		err := r.small(ctx, e, op, func(ctx context.Context, e *endpoint) error {
			return repository.Blobs().(registry.Mounter).Mount(ctx, desc, other, func() (io.ReadCloser, error) { return nil, errUnmounted })
		})
		if err == nil {
			return Mounted, nil
		}
		if ctx.Err() != nil {
			return "", err
		}
		// Whatever is wrong with the other repository, an upload can do without it.
	}
	content, err := open()
	if err != nil {
		return "", fmt.Errorf("%s %s: reading it: %w", op, r.ref, err)
	}
	source := &source{ReadCloser: content}
	defer source.Close()
	err = repository.Blobs().Push(ctx, desc, source)
	if err != nil && source.err != nil {
		return "", fmt.Errorf("%s %s: reading it: %w", op, r.ref, source.err)
	}
	if err != nil && source.read > desc.Size {
		return "", fmt.Errorf("%s %s: it has more than %d bytes: %w", op, r.ref, desc.Size, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return "", e.problem(ctx, op, err)
	}
	return Uploaded, nil
}

// source is content that is uploaded. It tells whose fault an error is.
type source struct {
	io.ReadCloser
	read int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.read += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// PushManifest gives a repository a manifest or index, under its digest and, if tag
// is not "", that tag. What it names has to be there. If it is about another
// manifest (its subject) and the registry keeps no list of such, the tag that stands
// in for the list is brought up to date.
func (r *Repository) PushManifest(ctx context.Context, desc ocispec.Descriptor, body []byte, tag string) error {
	op := "push manifest " + desc.Digest.String() + " to"
	if err := checkDescriptor(desc, MaxManifest); err != nil {
		return fmt.Errorf("%s %s: %w", op, r.ref, err)
	}
	if int64(len(body)) != desc.Size || desc.Digest.Algorithm().FromBytes(body) != desc.Digest {
		return fmt.Errorf("%s %s: the body is not what the descriptor says: %w", op, r.ref, errdefs.ErrInvalidArgument)
	}
	if tag != "" {
		if err := (registry.Reference{Reference: tag}).ValidateReferenceAsTag(); err != nil {
			return fmt.Errorf("%s %s: %q is no tag: %w", op, r.ref, tag, errdefs.ErrInvalidArgument)
		}
	}
	e, err := r.pusher(op)
	if err != nil {
		return err
	}
	return r.small(ctx, e, op, func(ctx context.Context, e *endpoint) error {
		manifests := e.repository().Manifests()
		if tag == "" {
			return manifests.Push(ctx, desc, bytes.NewReader(body))
		}
		return manifests.PushReference(ctx, desc, bytes.NewReader(body), tag)
	})
}

var _ remote.Client = (*endpoint)(nil)
