package services

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/remotes"
)

const (
	// authTime is how long a client may take to say who its user is, who may have
	// to be asked.
	authTime = 2 * time.Minute
	// maxHeaders and maxHeader bound what a client has sent with each request.
	maxHeaders = 64
	maxHeader  = 8 << 10
)

// pull brings an image from a registry into the store.
func (c *transferCall) pull(ctx context.Context, from *transfer.OCIRegistry, to *transfer.ImageStore) error {
	repository, err := c.repository(ctx, from)
	if err != nil {
		return err
	}
	o, err := pullOptions(to)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("registry (%s)", from.GetReference())
	c.progress.phase("Resolving from " + what)
	c.progress.begin(o.Name)
	pulling := false
	made, err := c.images.Pull(ctx, c.scope, repository, o, func(p images.Progress) {
		if !pulling {
			pulling = true
			c.progress.phase("Pulling from " + what)
			c.progress.image("fetching image content", o.Name, ocispec.Descriptor{MediaType: p.MediaType, Digest: p.Digest, Size: p.Total})
		}
		c.progress.object(p)
	})
	if err != nil {
		return err
	}
	extra, err := c.nameExtra(ctx, descOf(made.Target), to)
	if err != nil {
		return err
	}
	for _, name := range append([]string{made.Name}, extra...) {
		c.progress.image("saved", name, made.Target)
	}
	c.progress.phase("Completed pull from " + what)
	return nil
}

// push brings an image from the store to a registry.
func (c *transferCall) push(ctx context.Context, from *transfer.ImageStore, to *transfer.OCIRegistry) error {
	repository, err := c.repository(ctx, to)
	if err != nil {
		return err
	}
	target, err := c.find(ctx, from.GetName())
	if err != nil {
		return err
	}
	what := fmt.Sprintf("registry (%s)", to.GetReference())
	c.progress.phase("Pushing to " + what)
	c.progress.begin(from.GetName())
	c.progress.image("pushing content", from.GetName(), target)
	o := images.PushOptions{Platforms: platformsOf(from.GetPlatforms())}
	pushed, err := c.images.Push(ctx, c.scope, target, repository, o, c.progress.object)
	if err != nil {
		return err
	}
	c.progress.image("pushed content", from.GetName(), pushed)
	c.progress.phase("Completed push to " + what)
	return nil
}

// repository opens what a client says of a registry.
func (c *transferCall) repository(ctx context.Context, r *transfer.OCIRegistry) (*remotes.Repository, error) {
	access, err := c.access(ctx, r)
	if err != nil {
		return nil, err
	}
	if c.remotes == nil {
		return nil, fmt.Errorf("this daemon reaches no registries: import an archive: %w", errdefs.ErrNotImplemented)
	}
	ref, err := remotes.ParseReference(r.GetReference())
	if err != nil {
		return nil, err
	}
	return c.remotes.Open(ref, access)
}

// access says how a client wants a registry to be spoken to.
func (c *transferCall) access(ctx context.Context, r *transfer.OCIRegistry) (remotes.Access, error) {
	resolver := r.GetResolver()
	access := remotes.Access{HostsDir: resolver.GetHostDir(), DefaultScheme: resolver.GetDefaultScheme()}
	if access.HostsDir != "" && !filepath.IsAbs(access.HostsDir) {
		return access, fmt.Errorf("host_dir %.100q has to be an absolute path: %w", access.HostsDir, errdefs.ErrInvalidArgument)
	}
	if len(resolver.GetHeaders()) > maxHeaders {
		return access, fmt.Errorf("there are more than %d headers: %w", maxHeaders, errdefs.ErrInvalidArgument)
	}
	for name, value := range resolver.GetHeaders() {
		if !headerOK(name, value) {
			return access, fmt.Errorf("header %.100q can't be sent: %w", name, errdefs.ErrInvalidArgument)
		}
		if access.Header == nil {
			access.Header = http.Header{}
		}
		access.Header.Set(name, value)
	}
	if err := c.traced(ctx, resolver, &access); err != nil {
		return access, err
	}
	if id := resolver.GetAuthStream(); id != "" {
		st, err := c.take(ctx, id)
		if err != nil {
			return access, err
		}
		auth := &authStream{stream: st, reference: r.GetReference(), turn: make(chan struct{}, 1)}
		access.Credentials = auth.ask
	}
	return access, nil
}

// headerOK tells whether HTTP has room for a header (RFC 9110, section 5.5).
func headerOK(name, value string) bool {
	if name == "" || len(name)+len(value) > maxHeader {
		return false
	}
	for _, r := range name {
		if r <= ' ' || r >= 0x7f || r == ':' {
			return false
		}
	}
	for i := range len(value) {
		if value[i] < ' ' && value[i] != '\t' || value[i] == 0x7f {
			return false
		}
	}
	return true
}

// authStream asks the client on its stream, one question at a time.
type authStream struct {
	stream    *stream
	reference string        // as the client has it
	turn      chan struct{} // holds one while a question is asked
}

// ask gives what the client says to a challenge. A client that doesn't answer in
// time is not asked again.
func (a *authStream) ask(ctx context.Context, r remotes.CredentialRequest) (remotes.Credential, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, authTime, fmt.Errorf("the client gave no answer for %s: %w", authTime, errdefs.ErrUnavailable))
	defer cancel()
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return remotes.Credential{}, context.Cause(ctx)
	}
	defer func() { <-a.turn }()
	stop := context.AfterFunc(ctx, func() { a.stream.end(context.Cause(ctx)) })
	defer stop()
	question, err := protobuf.MarshalAny(&transfer.AuthRequest{Host: r.Host, Reference: a.reference, Wwwauthenticate: r.Challenges})
	if err != nil {
		return remotes.Credential{}, err
	}
	err = a.stream.Send(question)
	var answer transfer.AuthResponse
	if err == nil {
		err = a.receive(&answer)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return remotes.Credential{}, err
	}
	return credentialOf(&answer)
}

func (a *authStream) receive(answer *transfer.AuthResponse) error {
	m, err := a.stream.Recv()
	if err != nil {
		return fmt.Errorf("the client has closed the stream: %w", errdefs.ErrUnauthenticated)
	}
	if !protobuf.Is(m, answer) {
		return fmt.Errorf("the client answered with a %.100q: %w", m.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(m.GetValue(), answer); err != nil {
		return fmt.Errorf("the client's answer can't be read: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// credentialOf is what a client answers. Nothing secret is in its errors.
func credentialOf(r *transfer.AuthResponse) (remotes.Credential, error) {
	if at := r.GetExpireAt(); at != nil && at.AsTime().Before(time.Now()) {
		return remotes.Credential{}, fmt.Errorf("the client's credential ended at %s: %w", at.AsTime().Format(time.RFC3339), errdefs.ErrUnauthenticated)
	}
	switch r.GetAuthType() {
	case transfer.AuthType_NONE:
		return remotes.Credential{}, nil
	case transfer.AuthType_CREDENTIALS:
		return remotes.Credential{Username: r.GetUsername(), Password: r.GetSecret()}, nil
	case transfer.AuthType_REFRESH:
		return remotes.Credential{IdentityToken: r.GetSecret()}, nil
	case transfer.AuthType_HEADER:
		return remotes.HeaderCredential(r.GetSecret())
	}
	return remotes.Credential{}, fmt.Errorf("the client answered with authentication of type %d: %w", r.GetAuthType(), errdefs.ErrInvalidArgument)
}
