package remotes

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Config says how registries are spoken to. The zero value is ready for use.
type Config struct {
	// HostsDir has a directory for each registry (see Hosts); "" for none.
	HostsDir string
	// UserAgent is who we say we are; "" is "berth".
	UserAgent string

	DialTimeout   time.Duration // to connect; 0 is 15 s, hosts.toml may have another
	HeaderTimeout time.Duration // for an answer to begin; 0 is 30 s
	StallTimeout  time.Duration // for the next KiB of a body; 0 is 30 s
	TotalTimeout  time.Duration // for all but the bodies of blobs, tries included; 0 is 3 min

	Attempts     int           // at one host, for what may pass; 0 is 5, and 2 if another host is left
	FirstPause   time.Duration // between the first two attempts, then doubled; 0 is 250 ms
	LongestPause time.Duration // at most, also if the server asks for more; 0 is 20 s

	MaxBlobs    int // transfers of blobs at once with one host; 0 is 8
	MaxRequests int // other requests at once with one host; 0 is 16
}

// maxPools is how many hosts are remembered with their connections.
const maxPools = 64

// Client speaks to registries. It may be used by many at once: they share
// connections and the bounds on them, and nothing of who they are.
type Client struct {
	config Config

	// mu guards pools, of the hosts that were spoken to, by what is known of each.
	mu    sync.Mutex
	pools map[[sha256.Size]byte]*pool
}

// New makes a client. It does nothing until it is used.
func New(config Config) *Client {
	set := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	number := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	if config.UserAgent == "" {
		config.UserAgent = "berth"
	}
	set(&config.DialTimeout, 15*time.Second)
	set(&config.HeaderTimeout, 30*time.Second)
	set(&config.StallTimeout, 30*time.Second)
	set(&config.TotalTimeout, 3*time.Minute)
	set(&config.FirstPause, 250*time.Millisecond)
	set(&config.LongestPause, 20*time.Second)
	number(&config.Attempts, 5)
	number(&config.MaxBlobs, 8)
	number(&config.MaxRequests, 16)
	return &Client{config: config, pools: map[[sha256.Size]byte]*pool{}}
}

// Close closes the connections that nobody uses.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.pools {
		p.close()
		delete(c.pools, key)
	}
}

// Access says as whom, and where else, a registry is spoken to.
type Access struct {
	// Credentials is asked when a registry wants to know who we are; nil is nobody.
	Credentials Credentials
	// HostsDir is used instead of the client's if it isn't "".
	HostsDir string
	// DefaultScheme is "http" or "https" for registries that nothing else is said
	// about; "" is https, and http for this machine.
	DefaultScheme string
	// Header goes with every request to a host of the registry, and nowhere else.
	Header http.Header
	// Trace is told of each request when its answer begins, in a line without
	// secrets: no headers of ours, no queries, no bodies. It must not block; nil: nobody.
	Trace func(line string)
}

// Open gives the repository of a reference. It reads the hosts' directory, and asks
// nobody yet.
//
// InvalidArgument: the directory can't be understood. NotFound: a key file is
// missing.
func (c *Client) Open(ref Reference, access Access) (*Repository, error) {
	dir := access.HostsDir
	if dir == "" {
		dir = c.config.HostsDir
	}
	if ref.Registry == "" || ref.Repository == "" {
		return nil, fmt.Errorf("reference %q lacks registry or repository: %w", ref, errdefs.ErrInvalidArgument)
	}
	hosts, err := Hosts(dir, ref.Registry)
	if err != nil {
		return nil, err
	}
	switch access.DefaultScheme {
	case "":
	case "http", "https":
		if bare, err := Hosts("", ref.Registry); err == nil && len(hosts) == 1 && hosts[0].URL.String() == bare[0].URL.String() && hosts[0].TLS == nil {
			hosts[0].URL.Scheme = access.DefaultScheme
		}
	default:
		return nil, fmt.Errorf("scheme %q is neither http nor https: %w", access.DefaultScheme, errdefs.ErrInvalidArgument)
	}
	r := &Repository{ref: ref, client: c, dir: dir}
	for i, host := range hosts {
		pool, err := c.pool(host)
		if err != nil {
			return nil, fmt.Errorf("registry %s: host %s: %w", ref.Registry, host.URL.Host, err)
		}
		attempts := c.config.Attempts
		if i < len(hosts)-1 {
			attempts = min(attempts, 2)
		}
		r.endpoints = append(r.endpoints, newEndpoint(c, host, pool, ref, access, attempts))
	}
	return r, nil
}

// pool gives the connections with a host. Keys are read each time: ones that were
// changed make a new pool.
func (c *Client) pool(host Host) (*pool, error) {
	keys, id, err := loadKeys(host)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.pools[id]; ok {
		p.used = time.Now()
		return p, nil
	}
	if len(c.pools) >= maxPools {
		oldest := id
		for key, p := range c.pools {
			if o, ok := c.pools[oldest]; !ok || p.used.Before(o.used) {
				oldest = key
			}
		}
		c.pools[oldest].close()
		delete(c.pools, oldest)
	}
	p := newPool(c.config, host, keys)
	c.pools[id] = p
	return p, nil
}

// A slot is the right to one of the requests at once that a host is sent.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slots) free() { <-s }
