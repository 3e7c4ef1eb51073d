package remotes

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// maxChallenge is how many bytes of WWW-Authenticate headers are read.
const maxChallenge = 16 << 10

// challenge is how a server wants to be shown who asks (RFC 7235, section 2.1).
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

// parseChallenges reads the challenges of WWW-Authenticate headers, of which each
// may hold several. What can't be read is left out.
func parseChallenges(headers []string) []challenge {
	var list []challenge
	total := 0
	for _, text := range headers {
		if total += len(text); total > maxChallenge {
			break
		}
		list = appendChallenges(list, text)
	}
	return list
}

func appendChallenges(list []challenge, text string) []challenge {
	var current *challenge
	for {
		text = strings.TrimLeft(text, " \t,")
		word, rest := token(text)
		if word == "" {
			return list
		}
		after := strings.TrimLeft(rest, " \t")
		if current == nil || !strings.HasPrefix(after, "=") {
			list = append(list, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
			current = &list[len(list)-1]
			// A token68 instead of parameters tells nothing that is wanted here.
			text = rest
			continue
		}
		value, rest, ok := paramValue(strings.TrimLeft(after[1:], " \t"))
		if !ok {
			return list
		}
		current.params[strings.ToLower(word)] = value
		text = rest
	}
}

// token takes the characters off the front that may be in a token (RFC 7230,
// section 3.2.6).
func token(text string) (word, rest string) {
	end := strings.IndexFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
	if end < 0 {
		end = len(text)
	}
	return text[:end], text[end:]
}

// paramValue takes a token or a quoted string off the front.
func paramValue(text string) (value, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		value, rest = token(text)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; c {
		case '"':
			return b.String(), text[i+1:], true
		case '\\':
			if i++; i < len(text) {
				b.WriteByte(text[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// choose takes the challenge that is answered: a token's if there is one, as that
// shows the password to the fewest.
func choose(list []challenge) (challenge, bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range list {
			if c.scheme == scheme && (scheme == "basic" || c.params["realm"] != "") {
				return c, true
			}
		}
	}
	return challenge{}, false
}

// header writes a challenge so that any parser reads it alike.
func (c challenge) header() string {
	if c.scheme != "bearer" {
		return "Basic realm=" + strconv.Quote(c.params["realm"])
	}
	text := "Bearer realm=" + strconv.Quote(c.params["realm"])
	for _, key := range []string{"service", "scope"} {
		if value := c.params[key]; value != "" {
			text += "," + key + "=" + strconv.Quote(value)
		}
	}
	return text
}

// parseRealm reads the address that a registry sends us to for a token, which is
// where the password goes. It has to be https unless the registry itself is spoken
// to by http.
func parseRealm(realm string, registry *url.URL) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s wants tokens to be fetched from what is no URL of a web server: %w", registry.Host, errdefs.ErrPermissionDenied)
	}
	if u.Scheme == "http" && registry.Scheme == "https" {
		return nil, fmt.Errorf("%s wants tokens to be fetched from %s by http, where anyone on the way could read the password: %w", registry.Host, u.Host, errdefs.ErrPermissionDenied)
	}
	return u, nil
}

// checkRealm is parseRealm, and looks where the host is: a public registry may not
// send us into a private network. It tells whether the realm is on one, and on
// another host than the registry.
func checkRealm(ctx context.Context, realm string, registry *url.URL) (u *url.URL, inside bool, err error) {
	u, err = parseRealm(realm, registry)
	if err != nil || strings.EqualFold(u.Hostname(), registry.Hostname()) {
		return u, false, err
	}
	if inside = isInside(ctx, u.Hostname()); inside && !isInside(ctx, registry.Hostname()) {
		return nil, true, fmt.Errorf("%s is a public registry and wants tokens to be fetched from %s, which is on a private network: %w", registry.Host, u.Host, errdefs.ErrPermissionDenied)
	}
	return u, inside, nil
}

// shared is the address space for carrier-grade NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// isInside tells whether a host has an address on a private network, this machine
// or the link. A name that isn't known here may be to a proxy; it counts as outside.
func isInside(ctx context.Context, host string) bool {
	var addresses []netip.Addr
	if one, err := netip.ParseAddr(host); err == nil {
		addresses = append(addresses, one)
	} else if addresses, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return false
	}
	for _, a := range addresses {
		if a = a.Unmap(); a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsUnspecified() || shared.Contains(a) {
			return true
		}
	}
	return false
}

// sameOrigin tells whether two URLs are on the same server.
func sameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "http") {
		return "80"
	}
	return "443"
}

// challenges are what the server said last, for whoever is asked for credentials.
func challenges(resp *http.Response) []string {
	var list []string
	total := 0
	for _, text := range resp.Header.Values("Www-Authenticate") {
		if total += len(text); total > maxChallenge {
			break
		}
		list = append(list, text)
	}
	return list
}
