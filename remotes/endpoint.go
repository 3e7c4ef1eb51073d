package remotes

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// Credential is how somebody shows a registry who they are. The zero value is
// nobody.
type Credential struct {
	Username string
	Password string
	// IdentityToken is given for tokens instead of the password (OAuth2's refresh
	// token).
	IdentityToken string
	// RegistryToken is a token itself.
	RegistryToken string
}

// HeaderCredential is what the value of an Authorization header says.
// InvalidArgument: it is neither Basic nor Bearer.
func HeaderCredential(value string) (Credential, error) {
	scheme, rest, _ := strings.Cut(value, " ")
	rest = strings.TrimSpace(rest)
	switch {
	case strings.EqualFold(scheme, "bearer") && rest != "":
		return Credential{RegistryToken: rest}, nil
	case strings.EqualFold(scheme, "basic"):
		if text, err := base64.StdEncoding.DecodeString(rest); err == nil {
			if user, password, ok := strings.Cut(string(text), ":"); ok {
				return Credential{Username: user, Password: password}, nil
			}
		}
	}
	return Credential{}, fmt.Errorf("the header for authorization is neither Basic nor Bearer: %w", errdefs.ErrInvalidArgument)
}

// CredentialRequest says who wants to know who we are.
type CredentialRequest struct {
	Host       string   // with port if it has one; that of docker.io is registry-1.docker.io
	Reference  string   // what it is about
	Challenges []string // WWW-Authenticate headers
}

// Credentials gives the credential for a host. It has to look at the host: mirrors
// are asked before the registry.
type Credentials func(ctx context.Context, req CredentialRequest) (Credential, error)

// tokenPath begins the path of a request for a token that goes to a realm on a
// private network; see guard.
const tokenPath = "/.berth-token/"

// endpoint is a host, spoken to by one caller about one repository. It is the
// client of an oras-go repository.
type endpoint struct {
	host   Host
	pool   *pool
	ref    Reference
	access Access
	auth   *auth.Client
	agent  string

	mu         sync.Mutex // guards what follows
	challenges []string
	realms     []*url.URL // on private networks; the number is in the path
}

func newEndpoint(c *Client, host Host, pool *pool, ref Reference, access Access, attempts int) *endpoint {
	e := &endpoint{host: host, pool: pool, ref: ref, access: access, agent: c.config.UserAgent}
	again := &retry.Transport{
		Base: &wire{e: e, stall: c.config.StallTimeout},
		Policy: func() retry.Policy {
			return policy{attempts: attempts, first: c.config.FirstPause, longest: c.config.LongestPause, now: time.Now}
		},
	}
	e.auth = &auth.Client{
		Client:     &http.Client{Transport: &guard{e: e, next: again}, CheckRedirect: checkRedirect},
		Cache:      auth.NewCache(),
		ClientID:   "berth",
		Credential: e.credential,
	}
	return e
}

// credential asks the caller, for this host alone.
func (e *endpoint) credential(ctx context.Context, host string) (auth.Credential, error) {
	if e.access.Credentials == nil || host != e.host.URL.Host {
		return auth.EmptyCredential, nil
	}
	e.mu.Lock()
	said := e.challenges
	e.mu.Unlock()
	c, err := e.access.Credentials(ctx, CredentialRequest{Host: host, Reference: e.ref.String(), Challenges: said})
	if err != nil {
		return auth.EmptyCredential, &credentialError{err}
	}
	return auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken, AccessToken: c.RegistryToken}, nil
}

// credentialError is an error of the caller's own.
type credentialError struct{ error }

func (e *credentialError) Unwrap() error { return e.error }

// repository is oras-go's view of this endpoint. Requests that it makes come to Do.
func (e *endpoint) repository() *remote.Repository {
	return &remote.Repository{
		Client:               e,
		Reference:            e.orasReference(),
		PlainHTTP:            e.host.URL.Scheme == "http",
		TagListMaxPages:      maxPages,
		ReferrerListMaxPages: maxPages,
		MaxMetadataBytes:     MaxManifest,
		SkipReferrersGC:      true,
	}
}

func (e *endpoint) orasReference() registry.Reference {
	return registry.Reference{Registry: e.host.URL.Host, Repository: e.ref.Repository}
}

// Do sends a request that was made for a host with its API at /v2, and whatever is
// needed to be let in first. It is oras-go's remote.Client.
func (e *endpoint) Do(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL = e.place(req)
	return e.auth.Do(out)
}

// place is where a request goes: the host may have its API at another path, and a
// mirror is told whose content is wanted.
func (e *endpoint) place(req *http.Request) *url.URL {
	u := *req.URL
	if !sameOrigin(&u, e.host.URL) {
		return &u
	}
	if req.Method == http.MethodPut && !strings.HasPrefix(u.Path, apiPath+"/"+e.ref.Repository+"/manifests/") {
		return &u // the host itself said where the upload goes on
	}
	at := e.host.URL.Path
	switch {
	case at == apiPath, strings.HasPrefix(u.Path, at+"/"+e.ref.Repository+"/"):
	case u.Path == apiPath || strings.HasPrefix(u.Path, apiPath+"/"):
		u.Path = path.Clean("/"+at) + strings.TrimPrefix(u.Path, apiPath)
		u.Path = strings.ReplaceAll(u.Path, "//", "/")
		u.RawPath = ""
	}
	if e.host.Mirror && !u.Query().Has("ns") {
		query := u.Query()
		query.Set("ns", e.ref.Registry)
		u.RawQuery = query.Encode()
	}
	return &u
}

// url is the address of something in the repository.
func (e *endpoint) url(parts ...string) string {
	u := url.URL{Scheme: e.host.URL.Scheme, Host: e.host.URL.Host}
	u.Path = apiPath + "/" + e.ref.Repository + "/" + strings.Join(parts, "/")
	return u.String()
}

// pulling says in the context what right is needed. Where a mirror has its API at a
// path of its own, its repositories have other names, which only it can tell.
func (e *endpoint) pulling(ctx context.Context) context.Context {
	if e.host.URL.Path != apiPath {
		return ctx
	}
	return auth.AppendRepositoryScope(ctx, e.orasReference(), auth.ActionPull)
}

// pushing is pulling for one who is going to push: one token serves both.
func (e *endpoint) pushing(ctx context.Context) context.Context {
	return auth.AppendRepositoryScope(ctx, e.orasReference(), auth.ActionPull, auth.ActionPush)
}

// guard stands between oras-go's authentication and the network. Headers that are
// for the host go there only. Of the challenges of a host it passes one on, if the
// realm in it may be one of that host.
//
// oras-go refuses all realms on private networks but those on the registry's own
// host. Registries on private networks have them, so such a realm is passed on as a
// path at the registry, and requests to that path are sent to the realm.
type guard struct {
	e    *endpoint
	next http.RoundTripper
}

// RoundTrip is of http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	e := g.e
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", e.agent)
	if !sameOrigin(req.URL, e.host.URL) {
		return g.next.RoundTrip(req)
	}
	if realm := e.realm(req.URL.Path); realm != nil {
		return g.fetchToken(req, realm)
	}
	for _, header := range []http.Header{e.host.Header, e.access.Header} {
		for key, values := range header {
			if key = http.CanonicalHeaderKey(key); key != "Authorization" || req.Header.Get(key) == "" {
				req.Header[key] = values
			}
		}
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	if err := g.judge(req.Context(), resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// judge leaves one challenge in an answer.
func (g *guard) judge(ctx context.Context, resp *http.Response) error {
	e, said := g.e, challenges(resp)
	resp.Header.Del("Www-Authenticate")
	e.mu.Lock()
	e.challenges = said
	e.mu.Unlock()
	c, ok := choose(parseChallenges(said))
	if !ok {
		return nil
	}
	if c.scheme == "bearer" {
		realm, inside, err := checkRealm(ctx, c.params["realm"], e.host.URL)
		if err != nil {
			return err
		}
		if inside {
			at := url.URL{Scheme: e.host.URL.Scheme, Host: e.host.URL.Host, Path: e.addRealm(realm)}
			c.params = maps.Clone(c.params)
			c.params["realm"] = at.String()
		}
	}
	resp.Header.Set("Www-Authenticate", c.header())
	return nil
}

// maxRealms is how many realms on private networks one host may name.
const maxRealms = 16

func (e *endpoint) addRealm(realm *url.URL) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, known := range e.realms {
		if *known == *realm {
			return fmt.Sprint(tokenPath, i)
		}
	}
	if len(e.realms) == maxRealms {
		e.realms = nil
	}
	e.realms = append(e.realms, realm)
	return fmt.Sprint(tokenPath, len(e.realms)-1)
}

func (e *endpoint) realm(path string) *url.URL {
	number, ok := strings.CutPrefix(path, tokenPath)
	if !ok {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, realm := range e.realms {
		if number == fmt.Sprint(i) {
			return realm
		}
	}
	return nil
}

func (g *guard) fetchToken(req *http.Request, realm *url.URL) (*http.Response, error) {
	query := realm.Query()
	for key, values := range req.URL.Query() {
		query[key] = values
	}
	u := *realm
	u.RawQuery = query.Encode()
	req.URL, req.Host = &u, u.Host
	resp, err := g.next.RoundTrip(req)
	if err == nil && resp.StatusCode >= 300 && resp.StatusCode < 400 {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: %s was to give a token and sends us elsewhere", errRedirect, u.Host)
	}
	return resp, err
}
