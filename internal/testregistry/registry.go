// Package testregistry runs a registry for tests.
package testregistry

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
	"testing"
	"time"

	"github.com/berthd/berth/internal/needed"
)

// Who may use a registry that wants a password.
const (
	User     = "ali"
	Password = "open:sesame"
	// hash is htpasswd's bcrypt of the password.
	hash = "$2y$05$abcdefghijklmnopqrstuubMHTpw5uKdtLGvKw5uzYhbpqtktcY3."
)

// Keys are files with a certificate authority of the test's own, and a server's
// certificate by it, which does for a client too.
type Keys struct{ CA, Cert, Key string }

// MakeKeys makes keys for this machine's loopback addresses in dir.
func MakeKeys(t testing.TB, dir string) Keys {
	t.Helper()
	keys, err := NewKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// NewKeys is MakeKeys for those who have no test.
func NewKeys(dir string) (_ Keys, err error) {
	write := func(name, kind string, der []byte) string {
		at := filepath.Join(dir, name)
		err = errors.Join(err, os.WriteFile(at, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return at
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Keys{}, err
	}
	server, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Keys{}, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &authority.PublicKey, authority)
	if err != nil {
		return Keys{}, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &server.PublicKey, authority)
	if err != nil {
		return Keys{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(server)
	if err != nil {
		return Keys{}, err
	}
	return Keys{write("ca.pem", "CERTIFICATE", caDER), write("server.pem", "CERTIFICATE", der), write("server-key.pem", "EC PRIVATE KEY", keyDER)}, err
}

// Start runs Debian's docker-registry on this machine for the length of the test, by
// https if there are keys, and returns its host. Without the program the test ends as
// package needed has it.
func Start(t testing.TB, password bool, tls *Keys) string {
	t.Helper()
	r, err := Run("", t.TempDir(), password, tls)
	if errors.Is(err, exec.ErrNotFound) {
		needed.Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		if testing.Verbose() && t.Failed() {
			t.Logf("docker-registry: %s", r.Log())
		}
	})
	return r.Host
}

// Registry is Debian's docker-registry.
type Registry struct {
	Host string // with port
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{}
}

// Run is Start for those who have no test: it keeps everything in dir, and Close has to
// follow. program is where it lies unless it is in PATH; "": it is looked for. If it
// isn't there the error is exec.ErrNotFound.
func Run(program, dir string, password bool, tls *Keys) (*Registry, error) {
	if installed, err := exec.LookPath("docker-registry"); err == nil {
		program = installed
	} else if program == "" {
		if program, err = find(); err != nil {
			return nil, err
		}
	}
	var err error
	more := ""
	if tls != nil {
		more += fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", tls.Cert, tls.Key)
	}
	if password {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(User+":"+hash+"\n"), 0o600); err != nil {
			return nil, err
		}
		more += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %s}\n", file)
	}
	for range 5 { // another may take the port that was free
		var r *Registry
		if r, err = start(program, dir, more); err == nil {
			return r, nil
		}
	}
	return nil, err
}

func start(program, dir, more string) (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Registry{Host: l.Addr().String(), done: make(chan struct{})}
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp:\n  addr: %s\n%s", dir, r.Host, more)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	r.cmd = exec.Command(program, "serve", file)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { r.cmd.Wait(); close(r.done) }()
	if !listens(r.Host, r.done) {
		r.Close()
		return nil, fmt.Errorf("docker-registry does not start: %s", r.Log())
	}
	return r, nil
}

// Close ends the registry.
func (r *Registry) Close() {
	r.cmd.Process.Kill()
	<-r.done
}

// Log is what the registry has said; for after Close.
func (r *Registry) Log() string { return r.log.String() }

// listens waits until somebody listens at an address.
func listens(addr string, ended <-chan struct{}) bool {
	for {
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err == nil {
			conn.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// find looks for the program where scripts/deps.sh puts it.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		at := filepath.Join(dir, ".tools/debian/usr/bin/docker-registry")
		if _, err := os.Stat(at); err == nil {
			return at, nil
		}
	}
	return "", exec.ErrNotFound
}
