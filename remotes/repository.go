package remotes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxManifest is how many bytes a manifest, index or list may have.
	MaxManifest = 4 << 20
	// maxPages and maxListed bound lists of tags and referrers.
	maxPages  = 1000
	maxListed = 100_000
)

// Media types of manifests and indexes that docker has names of its own for.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}

// IsManifest tells whether a media type is one of a manifest or index, which
// registries keep apart from blobs.
func IsManifest(mediaType string) bool {
	for _, one := range manifestTypes {
		if mediaType == one {
			return true
		}
	}
	return mediaType == "application/vnd.oci.artifact.manifest.v1+json"
}

// Repository is one of a registry, at all its hosts. Hosts are asked in order, each
// for what it may be asked for, until one has an answer. It may be used by many at
// once.
type Repository struct {
	ref       Reference
	client    *Client
	dir       string // with what is known of registries
	endpoints []*endpoint
}

// Reference is what the repository was opened with.
func (r *Repository) Reference() Reference { return r.ref }

// Hosts lists the hosts in the order in which they are asked.
func (r *Repository) Hosts() []Host {
	list := make([]Host, len(r.endpoints))
	for i, e := range r.endpoints {
		list[i] = e.host
	}
	return list
}

// able lists the endpoints that may be asked for something.
func (r *Repository) able(op string, need Capability) ([]*endpoint, error) {
	var list []*endpoint
	for _, e := range r.endpoints {
		if e.host.Capabilities.Has(need) {
			list = append(list, e)
		}
	}
	if list == nil {
		return nil, fmt.Errorf("%s %s: no host of %s has the capability %s; it is given in hosts.toml under %q: %w", op, r.ref, r.ref.Registry, need, r.dir, errdefs.ErrFailedPrecondition)
	}
	return list, nil
}

// each asks one host after the other until one has an answer.
func (r *Repository) each(ctx context.Context, op string, need Capability, ask func(ctx context.Context, e *endpoint) error) error {
	list, err := r.able(op, need)
	if err != nil {
		return err
	}
	var problems []error
	for _, e := range list {
		err := r.small(ctx, e, op, ask)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		problems = append(problems, err)
	}
	return attempts(problems)
}

// small asks a host for what is not large, in bounded time.
func (r *Repository) small(ctx context.Context, e *endpoint, op string, ask func(ctx context.Context, e *endpoint) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.client.config.TotalTimeout, errSlow)
	defer cancel()
	if err := e.pool.rest.take(ctx); err != nil {
		return e.problem(ctx, op, err)
	}
	defer e.pool.rest.free()
	for attempt := 0; ; attempt++ {
		err := ask(ctx, e)
		if !errors.As(err, new(*cutError)) || attempt >= r.client.config.Attempts-1 || r.pause(ctx, attempt) != nil {
			return e.problem(ctx, op, err)
		}
	}
}

// pause waits before an attempt after the given one.
func (r *Repository) pause(ctx context.Context, attempt int) error {
	c := r.client.config
	timer := time.NewTimer(policy{first: c.FirstPause, longest: c.LongestPause}.pause(attempt))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Resolve finds the manifest or index that the reference stands for now.
func (r *Repository) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	need := Resolve
	if r.ref.Digest != "" {
		need = Pull
	}
	var desc ocispec.Descriptor
	err := r.each(ctx, "resolve", need, func(ctx context.Context, e *endpoint) error {
		var err error
		desc, err = e.head(ctx, r.ref.Object())
		if errors.Is(err, errNoHead) {
			desc, _, err = e.manifest(ctx, r.ref.Object(), manifestTypes)
		}
		return err
	})
	return desc, err
}

// Get finds the manifest or index that the reference stands for, and fetches it by
// the same request.
func (r *Repository) Get(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	need := Resolve | Pull
	if r.ref.Digest != "" {
		need = Pull
	}
	var desc ocispec.Descriptor
	var body []byte
	err := r.each(ctx, "fetch", need, func(ctx context.Context, e *endpoint) error {
		var err error
		desc, body, err = e.manifest(ctx, r.ref.Object(), manifestTypes)
		return err
	})
	return desc, body, err
}

// Manifest fetches a manifest or index. What it returns has the descriptor's digest
// and size, and names no other media type.
func (r *Repository) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(desc, MaxManifest); err != nil {
		return nil, fmt.Errorf("fetch manifest of %s: %w", r.ref, err)
	}
	var body []byte
	err := r.each(ctx, "fetch manifest "+desc.Digest.String()+" of", Pull, func(ctx context.Context, e *endpoint) error {
		got, data, err := e.manifest(ctx, desc.Digest.String(), []string{desc.MediaType})
		switch {
		case err != nil:
			return err
		case got.Size != desc.Size:
			return fmt.Errorf("the manifest has %d bytes and was to have %d: %w", got.Size, desc.Size, errdefs.ErrDataLoss)
		}
		if named := namedType(data); named != "" && named != desc.MediaType {
			return fmt.Errorf("the manifest calls itself %q and was to be %q: %w", clean(named), desc.MediaType, errdefs.ErrDataLoss)
		}
		body = data
		return nil
	})
	return body, err
}

// checkDescriptor looks whether a descriptor can be asked for.
func checkDescriptor(desc ocispec.Descriptor, limit int64) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %v: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 || limit > 0 && desc.Size > limit {
		return fmt.Errorf("%s is said to have %d bytes, which is out of bounds: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// errNoHead is an answer to HEAD that says too little; GET has to be asked.
var errNoHead = errors.New("HEAD says too little")

// head asks for the headers of a manifest.
func (e *endpoint) head(ctx context.Context, object string) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	resp, err := e.request(ctx, http.MethodHead, manifestTypes, "manifests", object)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented, http.StatusUnsupportedMediaType:
		return none, errNoHead
	default:
		return none, answerError(resp)
	}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	dgst, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil || !IsManifest(mediaType) || resp.ContentLength <= 0 {
		return none, errNoHead
	}
	if want, err := digest.Parse(object); err == nil && want != dgst {
		return none, fmt.Errorf("it answers for %s with %s: %w", want, dgst, errdefs.ErrDataLoss)
	}
	if resp.ContentLength > MaxManifest {
		return none, fmt.Errorf("the manifest is said to have %d bytes; there may be %d: %w", resp.ContentLength, MaxManifest, errdefs.ErrDataLoss)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: resp.ContentLength}, nil
}

// manifest fetches by tag or digest, and checks the digest.
func (e *endpoint) manifest(ctx context.Context, object string, accept []string) (ocispec.Descriptor, []byte, error) {
	var none ocispec.Descriptor
	resp, err := e.request(ctx, http.MethodGet, accept, "manifests", object)
	if err != nil {
		return none, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return none, nil, answerError(resp)
	}
	data, err := readAll(resp.Body, MaxManifest)
	if err != nil {
		return none, nil, err
	}
	want, err := digest.Parse(object)
	if err != nil {
		// The header's algorithm is taken, as pushes by another than sha256 have it.
		if want, err = digest.Parse(resp.Header.Get("Docker-Content-Digest")); err != nil {
			want = digest.FromBytes(data)
		}
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return none, nil, fmt.Errorf("what it sent has the digest %s, not %s: %w", got, want, errdefs.ErrDataLoss)
	}
	mediaType, err := mediaTypeOf(resp.Header.Get("Content-Type"), data)
	if err != nil {
		return none, nil, err
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(data))}, data, nil
}

// namedType is the media type that a manifest gives itself.
func namedType(data []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &m) != nil {
		return ""
	}
	return m.MediaType
}

// mediaTypeOf tells what a body is: what it says itself, else what the header says,
// else what its fields show.
func mediaTypeOf(header string, data []byte) (string, error) {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return "", fmt.Errorf("what it sent is no manifest (Content-Type %q): %w", clean(header), errdefs.ErrDataLoss)
	}
	said, _, _ := mime.ParseMediaType(header)
	switch {
	case m.SchemaVersion == 1:
		return "", fmt.Errorf("the manifest is of docker's schema 1, which is no longer read; push the image anew: %w", errdefs.ErrNotImplemented)
	case m.MediaType != "" && IsManifest(said) && said != m.MediaType:
		return "", fmt.Errorf("the manifest calls itself %q, the registry %q: %w", clean(m.MediaType), said, errdefs.ErrDataLoss)
	case m.Manifests != nil && m.Config != nil:
		return "", fmt.Errorf("it is index and manifest in one: %w", errdefs.ErrDataLoss)
	case m.MediaType != "":
		return m.MediaType, nil
	case IsManifest(said):
		return said, nil
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case m.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("what it sent is no manifest (Content-Type %q): %w", clean(header), errdefs.ErrDataLoss)
}

// request sends one without a body.
func (e *endpoint) request(ctx context.Context, method string, accept []string, parts ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(e.pulling(ctx), method, e.url(parts...), nil)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(accept) > 0 {
		req.Header.Set("Accept", strings.Join(accept, ", "))
	}
	return e.Do(req)
}

// errEnough ends a list that is too long.
var errEnough = fmt.Errorf("there are more than %d: %w", maxListed, errdefs.ErrDataLoss)

// Tags lists the tags of the repository.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	var tags []string
	err := r.each(ctx, "list tags of", Resolve, func(ctx context.Context, e *endpoint) error {
		tags = nil
		return e.repository().Tags(ctx, "", func(page []string) error {
			if tags = append(tags, page...); len(tags) > maxListed {
				return errEnough
			}
			return nil
		})
	})
	return tags, err
}

// Referrers lists what says to be about a manifest: signatures, bills of material.
// An artifactType other than "" leaves out the rest. Registries that have no list of
// them have a tag instead, which is read.
func (r *Repository) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string) ([]ocispec.Descriptor, error) {
	if err := checkDescriptor(desc, 0); err != nil {
		return nil, fmt.Errorf("list referrers of %s: %w", r.ref, err)
	}
	var list []ocispec.Descriptor
	err := r.each(ctx, "list referrers of "+desc.Digest.String()+" in", Referrers, func(ctx context.Context, e *endpoint) error {
		list = nil
		return e.repository().Referrers(ctx, desc, artifactType, func(page []ocispec.Descriptor) error {
			if list = append(list, page...); len(list) > maxListed {
				return errEnough
			}
			return nil
		})
	})
	return list, err
}

// Exists tells whether the registry has a blob or manifest.
func (r *Repository) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if err := checkDescriptor(desc, 0); err != nil {
		return false, fmt.Errorf("look for %s: %w", r.ref, err)
	}
	err := r.each(ctx, "look for "+desc.Digest.String()+" in", Pull, func(ctx context.Context, e *endpoint) error {
		return e.exists(ctx, desc)
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (e *endpoint) exists(ctx context.Context, desc ocispec.Descriptor) error {
	kind := "blobs"
	if IsManifest(desc.MediaType) {
		kind = "manifests"
	}
	resp, err := e.request(ctx, http.MethodHead, []string{desc.MediaType, "*/*"}, kind, desc.Digest.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answerError(resp)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
		return fmt.Errorf("it has %s with %d bytes, which is to have %d: %w", desc.Digest, resp.ContentLength, desc.Size, errdefs.ErrDataLoss)
	}
	return nil
}

// Ping asks the registry, not for an image, but whether it lets us in. It is what
// a login is tried with.
func (r *Repository) Ping(ctx context.Context) error {
	list, err := r.able("ask", Resolve)
	if err != nil {
		return err
	}
	e := list[len(list)-1]
	return r.small(ctx, e, "ask", func(ctx context.Context, e *endpoint) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.host.URL.Scheme+"://"+e.host.URL.Host+apiPath+"/", nil)
		if err != nil {
			return err
		}
		resp, err := e.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return answerError(resp)
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return err
	})
}
