package remotes

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

const (
	maxHeader    = 128 << 10 // bytes of an answer's headers
	maxRedirects = 10
	maxKey       = 1 << 20 // bytes of a file with certificates
)

// pool is the connections with a host, and with those it sends us to.
type pool struct {
	own     *http.Transport // with our keys
	foreign *http.Transport // without: another host is not to learn them
	blobs   slots
	rest    slots
	used    time.Time // guarded by Client.mu
}

func newPool(config Config, host Host, keys *tls.Config) *pool {
	dial := config.DialTimeout
	if host.DialTimeout > 0 {
		dial = host.DialTimeout
	}
	make_ := func(keys *tls.Config) *http.Transport {
		return &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        keys,
			TLSHandshakeTimeout:    dial,
			ResponseHeaderTimeout:  config.HeaderTimeout,
			ExpectContinueTimeout:  time.Second,
			IdleConnTimeout:        60 * time.Second,
			MaxIdleConnsPerHost:    config.MaxBlobs,
			MaxResponseHeaderBytes: maxHeader,
			// HTTP/2 would keep up to 4 MiB of each layer in memory, and have all of them wait for
			// one connection; between hosts the kernel's buffers do better.
			Protocols:          protocols(),
			DisableCompression: true, // bodies are what they are digested as
		}
	}
	foreign := keys.Clone()
	foreign.Certificates = nil
	return &pool{
		own: make_(keys), foreign: make_(foreign), used: time.Now(),
		blobs: make(slots, config.MaxBlobs), rest: make(slots, config.MaxRequests),
	}
}

func protocols() *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(true)
	return p
}

func (p *pool) close() {
	p.own.CloseIdleConnections()
	p.foreign.CloseIdleConnections()
}

// loadKeys reads the files that are named for a host. The id is of all that makes
// one pool differ from another.
func loadKeys(host Host) (*tls.Config, [sha256.Size]byte, error) {
	sum := sha256.New()
	add := func(data []byte) {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(data))))
		sum.Write(data)
	}
	add([]byte(host.URL.String()))
	add([]byte(host.DialTimeout.String()))
	keys := &tls.Config{MinVersion: tls.VersionTLS12}
	if host.TLS != nil {
		if err := readKeys(host.TLS, keys, add); err != nil {
			return nil, [sha256.Size]byte{}, err
		}
	}
	return keys, [sha256.Size]byte(sum.Sum(nil)), nil
}

func readKeys(from *TLS, keys *tls.Config, add func([]byte)) error {
	keys.InsecureSkipVerify = from.SkipVerify
	add(fmt.Append(nil, from.SkipVerify, len(from.CAs), len(from.Pairs)))
	if len(from.CAs) > 0 {
		authorities, err := x509.SystemCertPool()
		if err != nil {
			return fmt.Errorf("the machine's certificate authorities: %w", err)
		}
		for _, path := range from.CAs {
			data, err := readKey(path)
			if err != nil {
				return err
			}
			add(data)
			if !authorities.AppendCertsFromPEM(data) {
				return fmt.Errorf("%s has no certificate in PEM: %w", path, errdefs.ErrInvalidArgument)
			}
		}
		keys.RootCAs = authorities
	}
	for _, pair := range from.Pairs {
		cert, err := readKey(pair[0])
		if err != nil {
			return err
		}
		key := cert
		if pair[1] != "" {
			if key, err = readKey(pair[1]); err != nil {
				return err
			}
		}
		add(cert)
		add(key)
		own, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("certificate %s and its key: %v: %w", pair[0], err, errdefs.ErrInvalidArgument)
		}
		keys.Certificates = append(keys.Certificates, own)
	}
	return nil
}

func readKey(path string) ([]byte, error) {
	data, err := readLimited(path, maxKey)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return data, err
}

// wire sends a request once. It chooses the connections by whom the request is for,
// and bounds how long nothing may move on them.
type wire struct {
	e     *endpoint
	stall time.Duration
}

// RoundTrip is of http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &stallWriter{ReadCloser: req.Body, cancel: cancel, limit: w.stall}
	}
	transport := w.e.pool.foreign
	if sameOrigin(req.URL, w.e.host.URL) {
		transport = w.e.pool.own
	}
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	w.trace(req, resp, err, time.Since(began))
	if err != nil {
		if cause := context.Cause(ctx); cause == errStalled {
			err = errStalled
		}
		cancel(context.Canceled)
		return nil, err
	}
	resp.Body = &stallReader{body: resp.Body, ctx: ctx, cancel: cancel, limit: w.stall}
	return resp, nil
}

// trace tells the caller of a request.
func (w *wire) trace(req *http.Request, resp *http.Response, err error, took time.Duration) {
	if w.e.access.Trace == nil {
		return
	}
	what := fmt.Sprintf("%s %s://%s%s", req.Method, req.URL.Scheme, req.URL.Host, req.URL.EscapedPath())
	if part := req.Header.Get("Range"); part != "" {
		what += " (" + part + ")"
	}
	if err != nil {
		w.e.access.Trace(fmt.Sprintf("%s: %s, after %s", clean(what), clean(err.Error()), took.Round(time.Millisecond)))
		return
	}
	line := fmt.Sprintf("%s: %s, %s, after %s", clean(what), clean(resp.Status), resp.Proto, took.Round(time.Millisecond))
	if resp.ContentLength >= 0 {
		line += fmt.Sprintf(", %d bytes of %s", resp.ContentLength, clean(resp.Header.Get("Content-Type")))
	}
	w.e.access.Trace(line)
}

// errRedirect is a redirection that is not followed.
var errRedirect = errors.New("redirect refused")

// checkRedirect says which redirections are followed.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: more than %d of them", errRedirect, maxRedirects)
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
		return fmt.Errorf("%w: to what is no web server", errRedirect)
	}
	secure := slices.ContainsFunc(via, func(r *http.Request) bool { return r.URL.Scheme == "https" })
	if secure && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to http, at %s", errRedirect, req.URL.Host)
	}
	return nil
}

// readAll reads a small body, and no more of it than limit. An error of the
// connection is a cutError.
func readAll(body io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	switch {
	case err != nil:
		return nil, &cutError{err}
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("the answer is longer than %d bytes: %w", limit, errdefs.ErrDataLoss)
	}
	return data, nil
}

// cutError is a body that broke off.
type cutError struct{ error }

func (e *cutError) Unwrap() error { return e.error }
