package harness

import (
	"fmt"
	"os"

	"github.com/berthd/berth/internal/testregistry"
)

// The account of registries that want to know who asks.
const (
	RegistryUser     = testregistry.User
	RegistryPassword = testregistry.Password
)

// RegistryOptions say how a registry is reached. The zero value is plain http, and
// lets anyone in.
type RegistryOptions struct {
	Password bool // RegistryUser alone gets in
	TLS      bool // https, by an authority that nobody knows
}

// Registry is a registry on this machine, with a directory of its own.
type Registry struct {
	*testregistry.Registry
	CA  string // file with the authority's certificate, if it speaks https
	URL string

	dir string
}

// StartRegistry starts a registry and returns when it listens. Close ends it.
func StartRegistry(p *Programs, o RegistryOptions) (*Registry, error) {
	dir, err := os.MkdirTemp("", "berth-registry-")
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: dir, URL: "http://"}
	var keys *testregistry.Keys
	if o.TLS {
		made, err := testregistry.NewKeys(dir)
		if err != nil {
			return nil, err
		}
		keys, r.CA, r.URL = &made, made.CA, "https://"
	}
	if r.Registry, err = testregistry.Run(p.Tool("debian/usr/bin/docker-registry"), dir, o.Password, keys); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("docker-registry (scripts/deps.sh test installs it): %w", err)
	}
	r.URL += r.Host
	return r, nil
}

// Close ends the registry and removes what it has.
func (r *Registry) Close() error {
	r.Registry.Close()
	return os.RemoveAll(r.dir)
}
