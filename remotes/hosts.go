package remotes

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Capability is what a host may be asked for.
type Capability uint8

// What a host may be asked for.
const (
	Pull      Capability = 1 << iota // blobs and manifests by digest
	Resolve                          // the digest that a tag stands for
	Push                             // to take blobs, manifests and tags
	Referrers                        // what refers to a manifest
	all       = Pull | Resolve | Push | Referrers
)

var capabilities = map[string]Capability{"pull": Pull, "resolve": Resolve, "push": Push, "referrers": Referrers}

// Has tells whether every one of the other is in c.
func (c Capability) Has(other Capability) bool { return c&other == other }

// String lists them.
func (c Capability) String() string {
	var names []string
	for name, one := range capabilities {
		if c.Has(one) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// Host is one place where images of a registry can be had: the registry itself, or a
// mirror of it.
type Host struct {
	URL          *url.URL // scheme, host and the path that the API is under, without a slash at its end
	Capabilities Capability
	Header       http.Header   // for every request
	DialTimeout  time.Duration // 0: as the transport has it
	TLS          *TLS          // nil: the machine's authorities, no keys
	// Mirror says that the host is not the registry itself: requests name that in
	// the query parameter ns.
	Mirror bool
}

// TLS says by which keys a host is known, and knows us.
type TLS struct {
	CAs        []string    // files with certificates besides the machine's own
	Pairs      [][2]string // files with a certificate and its key; the key may be in the former, "" then
	SkipVerify bool        // take any certificate
}

// Registry of docker.io: the name and where its API is.
const (
	dockerName = "docker.io"
	dockerHost = "registry-1.docker.io"
)

// apiPath is where a registry has its API (OCI distribution spec, "Endpoints").
const apiPath = "/v2"

// server is the registry itself where nothing is said about it. A registry on this
// machine speaks http unless it has a configuration or keys that say otherwise: on
// the way to it there is nobody to read or change anything.
func server(registry string, known bool) (Host, error) {
	host := registry
	if host == dockerName {
		host = dockerHost
	}
	scheme := "https"
	if isLocal(host) && !known {
		scheme = "http"
	}
	u, err := url.Parse(scheme + "://" + host)
	if err != nil || u.Host != host || host == "" {
		return Host{}, fmt.Errorf("registry %q is no name of a host: %w", registry, errdefs.ErrInvalidArgument)
	}
	u.Path = apiPath
	return Host{URL: u, Capabilities: all}, nil
}

// isLocal tells whether a host is this machine by its name.
func isLocal(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// parseURL reads the address of a host in a configuration. Without a scheme it is
// https, but for this machine.
func parseURL(text string, override bool) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		scheme := "https://"
		if isLocal(strings.SplitN(text, "/", 2)[0]) {
			scheme = "http://"
		}
		text = scheme + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is no URL: %w", shown(text), errdefs.ErrInvalidArgument)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q is neither http nor https: %w", shown(text), errdefs.ErrInvalidArgument)
	case u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%q has to be a host and may have a path: %w", shown(text), errdefs.ErrInvalidArgument)
	case u.User != nil:
		return nil, fmt.Errorf("the URL of host %q has a user or password in it; credentials have places of their own: %w", u.Host, errdefs.ErrInvalidArgument)
	}
	u.Path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !override && !strings.HasSuffix(u.Path, apiPath) {
		u.Path += apiPath
	}
	u.RawPath = ""
	return u, nil
}

// shown is an address without the user and password that may be in it.
func shown(address string) string {
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		return address[at+1:]
	}
	return address
}
