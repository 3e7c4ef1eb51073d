package harness

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The account of registries that want to know who asks.
const (
	RegistryUser     = "ali"
	RegistryPassword = "open:sesame"
	// registryHash is htpasswd's bcrypt of the password.
	registryHash = "$2y$05$abcdefghijklmnopqrstuubMHTpw5uKdtLGvKw5uzYhbpqtktcY3."
)

// RegistryOptions say how a registry is reached. The zero value is plain http, and
// lets anyone in.
type RegistryOptions struct {
	Password bool // RegistryUser alone gets in
	TLS      bool // https, by an authority that nobody knows
}

// Registry is Debian's docker-registry on this machine, with a directory of its own.
type Registry struct {
	Host string // with port
	CA   string // file with the authority's certificate, if it speaks https
	URL  string

	dir   string
	log   bytes.Buffer
	cmd   *exec.Cmd
	ended chan struct{}
}

// StartRegistry starts a registry and returns when it listens. Close ends it.
func StartRegistry(p *Programs, o RegistryOptions) (_ *Registry, err error) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		program = p.Tool("debian/usr/bin/docker-registry")
	}
	dir, err := os.MkdirTemp("", "berth-registry-")
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("docker-registry (scripts/deps.sh test installs it): %w\n%s", err, r.log.String()), os.RemoveAll(dir))
		}
	}()
	more, err := r.prepare(o)
	if err != nil {
		return nil, err
	}
	for range 5 { // another may take the port that was free
		if err = r.start(program, more); err == nil {
			return r, nil
		}
	}
	return nil, err
}

// prepare writes the files that a registry reads, and gives what its configuration
// says of them.
func (r *Registry) prepare(o RegistryOptions) (more string, err error) {
	r.URL = "http://"
	if o.TLS {
		cert, key, err := r.makeKeys()
		if err != nil {
			return "", err
		}
		r.URL = "https://"
		more = fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", cert, key)
	}
	if o.Password {
		file := filepath.Join(r.dir, "htpasswd")
		if err := os.WriteFile(file, []byte(RegistryUser+":"+registryHash+"\n"), 0o600); err != nil {
			return "", err
		}
		more += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %s}\n", file)
	}
	return more, nil
}

func (r *Registry) start(program, more string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	r.Host = l.Addr().String()
	l.Close()
	config := filepath.Join(r.dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp:\n  addr: %s\n%s",
		filepath.Join(r.dir, "data"), r.Host, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	r.log.Reset()
	r.cmd = exec.Command(program, "serve", config)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	if err := r.cmd.Start(); err != nil {
		return err
	}
	r.ended = make(chan struct{})
	go func() { r.cmd.Wait(); close(r.ended) }()
	for {
		conn, err := net.DialTimeout("tcp", r.Host, 5*time.Second)
		if err == nil {
			r.URL += r.Host
			return conn.Close()
		}
		select {
		case <-r.ended:
			return errors.New("it ended at once")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// makeKeys makes an authority, and a certificate by it for this machine.
func (r *Registry) makeKeys() (cert, key string, err error) {
	write := func(name, kind string, der []byte) string {
		at := filepath.Join(r.dir, name)
		err = errors.Join(err, os.WriteFile(at, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return at
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	server, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "berth's tests"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &authority.PublicKey, authority)
	if err != nil {
		return "", "", err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &server.PublicKey, authority)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalECPrivateKey(server)
	if err != nil {
		return "", "", err
	}
	r.CA = write("ca.crt", "CERTIFICATE", caDER)
	return write("server.crt", "CERTIFICATE", leafDER), write("server.key", "EC PRIVATE KEY", keyDER), err
}

// Close ends the registry and removes what it has.
func (r *Registry) Close() error {
	err := r.cmd.Process.Kill()
	<-r.ended
	return errors.Join(err, os.RemoveAll(r.dir))
}

// Log is what the registry has said; for after Close.
func (r *Registry) Log() string { return r.log.String() }
