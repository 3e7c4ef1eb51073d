package remotes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// An Error says what was tried at which host and why it came to nothing. It is one
// kind of errdefs: NotFound, Unauthenticated, PermissionDenied, InvalidArgument,
// FailedPrecondition (the way to the host is not set up right), DataLoss (what came
// is not what was asked for), Unavailable (everything that may pass).
type Error struct {
	Op   string // "resolve", "fetch blob sha256:..."
	Ref  string // repository or reference
	Host string
	Text string // why, in words; without secrets and without queries of URLs
	Hint string // what to do; may be ""
	Kind error
	also error // of the caller's own: its context's or its callback's error
}

// Error is the whole of it in a line.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s %s: %s: %s", e.Op, e.Ref, e.Host, e.Text)
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text + ": " + e.Kind.Error()
}

// Unwrap gives the kind, and the caller's own error.
func (e *Error) Unwrap() []error {
	if e.also != nil {
		return []error{e.Kind, e.also}
	}
	return []error{e.Kind}
}

// errSlow ends what takes longer than Config.TotalTimeout.
var errSlow = errors.New("it took too long")

// maxText is how much of a server's words goes into an error.
const maxText = 512

// queries are what is cut from URLs in texts: signatures and tokens are there.
var queries = regexp.MustCompile(`\?[^\s"']*`)

// clean makes words of others fit for a log.
func clean(text string) string {
	text = queries.ReplaceAllString(text, "")
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}

// answerError is an answer with a status that means no.
func answerError(resp *http.Response) error {
	e := &errcode.ErrorResponse{Method: resp.Request.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, 8<<10)).Decode(&body) == nil {
		e.Errors = body.Errors
	}
	if wait := resp.Header.Get("Retry-After"); wait != "" {
		return &waitError{e, clean(wait)}
	}
	return e
}

// waitError is an answer that asks for patience.
type waitError struct {
	*errcode.ErrorResponse
	after string
}

func (e *waitError) Unwrap() error { return e.ErrorResponse }

// problem makes an Error of what came of a request to a host. The caller's own end
// of a call stays what it is.
func (e *endpoint) problem(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if own := ctx.Err(); own != nil && context.Cause(ctx) != errSlow {
		return fmt.Errorf("%s %s: %s: %w", op, e.ref, e.host.URL.Host, own)
	}
	p := &Error{Op: op, Ref: e.ref.String(), Host: e.host.URL.Host, Kind: errdefs.ErrUnavailable}
	if e.host.Mirror {
		p.Host += " (for " + e.ref.Registry + ")"
	}
	var (
		caller *credentialError
		said   *errcode.ErrorResponse
	)
	switch {
	case errors.As(err, &caller):
		p.Text, p.Kind, p.also = "asking for credentials: "+caller.Error(), errdefs.ErrUnauthenticated, caller.error
	case context.Cause(ctx) == errSlow:
		p.Text = "no complete answer within the time allowed"
	case errors.As(err, &said):
		e.explainAnswer(p, said, err)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		p.Text, p.Hint, p.Kind = "it wants a name and a password", e.loginHint(), errdefs.ErrUnauthenticated
	case errors.Is(err, errdef.ErrNotFound):
		p.Text, p.Kind = "it has no such thing", errdefs.ErrNotFound
	default:
		e.explainFailure(p, err)
	}
	return p
}

func (e *endpoint) loginHint() string {
	return "log in with: berth login " + e.ref.Registry
}

// statusKinds are the kinds of what statuses mean.
var statusKinds = map[int]error{
	http.StatusBadRequest:            errdefs.ErrInvalidArgument,
	http.StatusUnauthorized:          errdefs.ErrUnauthenticated,
	http.StatusForbidden:             errdefs.ErrPermissionDenied,
	http.StatusNotFound:              errdefs.ErrNotFound,
	http.StatusGone:                  errdefs.ErrNotFound,
	http.StatusMethodNotAllowed:      errdefs.ErrNotImplemented,
	http.StatusRequestEntityTooLarge: errdefs.ErrInvalidArgument,
	http.StatusUnprocessableEntity:   errdefs.ErrInvalidArgument,
	http.StatusNotImplemented:        errdefs.ErrNotImplemented,
}

func (e *endpoint) explainAnswer(p *Error, said *errcode.ErrorResponse, err error) {
	p.Text = fmt.Sprintf("%d %s", said.StatusCode, strings.ToLower(http.StatusText(said.StatusCode)))
	if said.URL != nil && said.URL.Host != e.host.URL.Host {
		p.Text = said.URL.Host + " answered " + p.Text
	}
	if len(said.Errors) > 0 {
		p.Text += ": " + clean(said.Errors.Error())
	}
	if kind, ok := statusKinds[said.StatusCode]; ok {
		p.Kind = kind
	}
	switch said.StatusCode {
	case http.StatusUnauthorized:
		p.Hint = e.loginHint()
		if e.access.Credentials != nil {
			p.Hint = "there is no such repository, or the credentials for it are missing or wrong; " + p.Hint
		}
	case http.StatusBadRequest:
		if e.host.URL.Scheme == "http" {
			p.Hint = fmt.Sprintf("it was spoken to by http; if it wants https, certs.d/%s/hosts.toml has to say: server = \"https://%s\", or ca.crt has to be there", e.ref.Registry, e.host.URL.Host)
		}
	case http.StatusForbidden:
		p.Hint = "the account has no right to this repository, or there is none of that name"
	case http.StatusTooManyRequests:
		p.Hint = "it limits how often it is asked; try later, log in, or use a mirror"
	}
	if wait := (*waitError)(nil); errors.As(err, &wait) {
		p.Text += ", to be asked again after " + wait.after
	}
}

// ownKinds are those that errors of this package bring with them.
var ownKinds = []error{
	errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss,
	errdefs.ErrFailedPrecondition, errdefs.ErrUnauthenticated, errdefs.ErrUnavailable, errdefs.ErrNotImplemented,
}

func (e *endpoint) explainFailure(p *Error, err error) {
	inner := err
	for at := (*url.Error)(nil); errors.As(inner, &at); {
		inner = at.Err
	}
	if i := slices.IndexFunc(ownKinds, func(kind error) bool { return errors.Is(inner, kind) }); i >= 0 {
		p.Kind = ownKinds[i]
		p.Text = clean(strings.TrimSuffix(inner.Error(), ": "+p.Kind.Error()))
		return
	}
	p.Text = clean(inner.Error())
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
	)
	switch {
	case errors.As(inner, &unknown), errors.As(inner, &hostname), errors.As(inner, &invalid):
		p.Kind = errdefs.ErrFailedPrecondition
		p.Hint = fmt.Sprintf("if its certificate is right, put that of its authority into certs.d/%s/ca.crt", e.ref.Registry)
	case errors.As(inner, &record), strings.Contains(p.Text, "server gave HTTP response to HTTPS client"):
		p.Kind = errdefs.ErrFailedPrecondition
		p.Hint = fmt.Sprintf("it doesn't speak https; if that is meant, certs.d/%s/hosts.toml has to say: server = \"http://%s\"", e.ref.Registry, e.host.URL.Host)
	case errors.Is(inner, errRedirect):
		p.Kind = errdefs.ErrPermissionDenied
	case errors.Is(inner, errStalled):
		p.Text = "nothing came for too long"
	}
}

// attempts makes one error of those of several hosts. The kind is that of the last:
// the registry itself knows best.
func attempts(list []error) error {
	if len(list) == 1 {
		return list[0]
	}
	texts := make([]string, len(list))
	for i, err := range list {
		texts[i] = err.Error()
	}
	last := list[len(list)-1]
	return &manyError{text: strings.Join(texts, "; "), last: last}
}

type manyError struct {
	text string
	last error
}

func (e *manyError) Error() string { return e.text }
func (e *manyError) Unwrap() error { return e.last }
