package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/images/v1"
	transferapi "github.com/berthd/berth/api/services/transfer/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/internal/streams"
	"github.com/berthd/berth/protobuf"
)

// Credential is how somebody shows a registry who they are. The zero value is
// nobody.
type Credential struct {
	Username string
	Password string
	// IdentityToken is given for tokens instead of the password.
	IdentityToken string
	// Header is the value of the Authorization header itself.
	Header string
}

// CredentialRequest says who wants to know who the user is.
type CredentialRequest struct {
	Host       string   // with port if it has one
	Reference  string   // what it is about
	Challenges []string // the host's WWW-Authenticate headers
}

// Registry says how the daemon is to speak to a registry.
type Registry struct {
	// Credentials is asked whenever a host wants to know who the user is; nil is
	// nobody. It has to look at the host: mirrors are asked before the registry.
	Credentials func(ctx context.Context, r CredentialRequest) (Credential, error)
	// HostsDir is a directory of the daemon's machine that is used instead of its
	// own if it isn't "".
	HostsDir string
	// PlainHTTP speaks http with a registry that nothing else is said about.
	PlainHTTP bool
	// Header goes with every request.
	Header map[string]string
}

// PullOptions say what of an image to bring in. The zero value takes the variant for
// this machine and unpacks it for the daemon's default snapshotter.
type PullOptions struct {
	Platforms    []string // os/arch[/variant]
	AllPlatforms bool
	NoUnpack     bool
	Snapshotter  string // to unpack for; "": the daemon's default
	Labels       map[string]string
	Registry     Registry
	Progress     func(*transfer.Progress) // may be nil
}

// PushOptions say what of an image to bring to a registry. The zero value brings all
// that the image names.
type PushOptions struct {
	Platforms []string // os/arch[/variant]
	Registry  Registry
	Progress  func(*transfer.Progress) // may be nil
}

// ExportOptions say what of images goes into an archive. The zero value takes the
// variants for this machine.
type ExportOptions struct {
	Platforms    []string // os/arch[/variant]
	AllPlatforms bool
	NoDocker     bool                     // leave out what only docker load needs
	NoForeign    bool                     // leave out layers that are not to be passed on
	Progress     func(*transfer.Progress) // may be nil
}

// ReferenceName gives the full form of an image's name: with a registry, and with
// the tag "latest" unless there is a tag or digest. InvalidArgument: it is none.
func ReferenceName(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return named.String(), nil
}

// Pull brings an image in from its registry. It returns when the image is listed.
func (c *Client) Pull(ctx context.Context, name string, o PullOptions) (*images.Image, error) {
	full, err := ReferenceName(name)
	if err != nil {
		return nil, err
	}
	to := &transfer.ImageStore{Name: full, Labels: o.Labels}
	chosen, err := platformList(o.Platforms)
	if err != nil {
		return nil, err
	}
	if chosen == nil {
		chosen = []*types.Platform{ownPlatform()}
	}
	if !o.NoUnpack {
		for _, p := range chosen {
			to.Unpacks = append(to.Unpacks, &transfer.UnpackConfiguration{Platform: p, Snapshotter: o.Snapshotter})
		}
	}
	if !o.AllPlatforms {
		to.Platforms = chosen
	}
	err = c.transfer(ctx, o.Progress, func(s *streamSet) (from, dest proto.Message, err error) {
		registry, err := s.registry(full, o.Registry)
		return registry, to, err
	})
	if err != nil {
		return nil, err
	}
	got, err := c.Images().Get(ctx, &images.GetImageRequest{Name: full})
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", full, err)
	}
	return got.GetImage(), nil
}

// Push brings an image of the store to a registry, under its own name or, if to isn't
// "", that one.
func (c *Client) Push(ctx context.Context, image *images.Image, to string, o PushOptions) error {
	if to == "" {
		to = image.GetName()
	}
	full, err := ReferenceName(to)
	if err != nil {
		return err
	}
	from := &transfer.ImageStore{Name: image.GetName()}
	if from.Platforms, err = platformList(o.Platforms); err != nil {
		return err
	}
	return c.transfer(ctx, o.Progress, func(s *streamSet) (source, dest proto.Message, err error) {
		registry, err := s.registry(full, o.Registry)
		return from, registry, err
	})
}

// Export writes images of the store, by their full names, to w: a tar that is an OCI
// layout and that docker load takes too.
func (c *Client) Export(ctx context.Context, names []string, w io.Writer, o ExportOptions) error {
	from := &transfer.ImageStore{}
	for _, name := range names {
		from.ExtraReferences = append(from.ExtraReferences, &transfer.ImageReference{Name: name})
	}
	to := &transfer.ImageExportStream{AllPlatforms: o.AllPlatforms, SkipCompatibilityManifest: o.NoDocker, SkipNonDistributable: o.NoForeign}
	var err error
	if to.Platforms, err = platformList(o.Platforms); err != nil {
		return err
	}
	if to.Platforms == nil {
		to.Platforms = []*types.Platform{ownPlatform()}
	}
	return c.transfer(ctx, o.Progress, func(s *streamSet) (source, dest proto.Message, err error) {
		to.Stream, err = s.serve("export", func(stream anyStream) error { return save(stream, w) })
		return from, to, err
	})
}

// save writes what comes over a stream to w.
func save(stream anyStream, w io.Writer) error {
	failed := &failing{w: w}
	// If reading fails the call has failed too, and says why.
	_, _ = io.CopyBuffer(failed, streams.NewReader(stream), make([]byte, streams.MaxData))
	if failed.err != nil {
		return fmt.Errorf("write the archive: %w", failed.err)
	}
	return nil
}

// failing remembers an error of a writer.
type failing struct {
	w   io.Writer
	err error
}

func (f *failing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

// transfer calls the daemon, with the streams that prepare opens.
func (c *Client) transfer(ctx context.Context, progress func(*transfer.Progress), prepare func(*streamSet) (from, to proto.Message, err error)) error {
	s := c.newStreamSet(ctx)
	return s.end(s.run(progress, prepare))
}

func (s *streamSet) run(progress func(*transfer.Progress), prepare func(*streamSet) (from, to proto.Message, err error)) error {
	request := &transferapi.TransferRequest{}
	if progress != nil {
		id, err := s.serve("progress", func(stream anyStream) error { return watch(stream, progress) })
		if err != nil {
			return err
		}
		request.Options = &transferapi.TransferOptions{ProgressStream: id}
	}
	from, to, err := prepare(s)
	if err != nil {
		return err
	}
	if request.Source, err = protobuf.MarshalAny(from); err != nil {
		return err
	}
	if request.Destination, err = protobuf.MarshalAny(to); err != nil {
		return err
	}
	_, err = s.c.Transfers().Transfer(s.ctx, request)
	return err
}

// watch passes progress on until there is none any more. How it ends is of no
// interest: the call tells how things went.
func watch(stream anyStream, progress func(*transfer.Progress)) error {
	for {
		p := &transfer.Progress{}
		if receiveAs(stream, p) != nil {
			return nil
		}
		progress(p)
	}
}

// registry makes what a registry is to the daemon.
func (s *streamSet) registry(name string, r Registry) (*transfer.OCIRegistry, error) {
	resolver := &transfer.RegistryResolver{HostDir: r.HostsDir, Headers: r.Header}
	if r.PlainHTTP {
		resolver.DefaultScheme = "http"
	}
	if r.Credentials != nil {
		id, err := s.serve("auth", func(stream anyStream) error { return s.authenticate(stream, r) })
		if err != nil {
			return nil, err
		}
		resolver.AuthStream = id
	}
	return &transfer.OCIRegistry{Reference: name, Resolver: resolver}, nil
}

// authenticate answers the daemon's questions.
func (s *streamSet) authenticate(stream anyStream, r Registry) error {
	for {
		var question transfer.AuthRequest
		if receiveAs(stream, &question) != nil {
			return nil
		}
		credential, err := r.Credentials(s.ctx, CredentialRequest{
			Host: question.GetHost(), Reference: question.GetReference(), Challenges: question.GetWwwauthenticate(),
		})
		if err != nil {
			return fmt.Errorf("credentials for %s: %w", question.GetHost(), err)
		}
		answer, err := protobuf.MarshalAny(credential.answer())
		if err != nil {
			return fmt.Errorf("credentials for %s: %w", question.GetHost(), err)
		}
		if err := stream.Send(answer); err != nil && !errors.Is(err, io.EOF) {
			return nil // the call is over
		}
	}
}

func (c Credential) answer() *transfer.AuthResponse {
	switch {
	case c.Header != "":
		return &transfer.AuthResponse{AuthType: transfer.AuthType_HEADER, Secret: c.Header}
	case c.IdentityToken != "":
		return &transfer.AuthResponse{AuthType: transfer.AuthType_REFRESH, Username: c.Username, Secret: c.IdentityToken}
	case c.Username != "":
		return &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: c.Username, Secret: c.Password}
	}
	return &transfer.AuthResponse{AuthType: transfer.AuthType_NONE}
}

// platformList reads platforms.
func platformList(texts []string) ([]*types.Platform, error) {
	var list []*types.Platform
	for _, text := range texts {
		p, err := platforms.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		list = append(list, platformMessage(p))
	}
	return list, nil
}

func ownPlatform() *types.Platform { return platformMessage(platforms.DefaultSpec()) }

func platformMessage(p imagespec.Platform) *types.Platform {
	return &types.Platform{Os: p.OS, Architecture: p.Architecture, Variant: p.Variant, OsVersion: p.OSVersion}
}
