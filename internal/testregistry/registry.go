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
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
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
	write := func(name, kind string, der []byte) string {
		at := filepath.Join(dir, name)
		if err := os.WriteFile(at, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return at
	}
	pair := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	authority, server := pair(), pair()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &authority.PublicKey, authority)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &server.PublicKey, authority)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(server)
	if err != nil {
		t.Fatal(err)
	}
	return Keys{write("ca.pem", "CERTIFICATE", caDER), write("server.pem", "CERTIFICATE", der), write("server-key.pem", "EC PRIVATE KEY", keyDER)}
}

// Start runs Debian's docker-registry on this machine for the length of the test, by
// https if there are keys, and returns its host. Without the program the test is
// skipped.
func Start(t testing.TB, password bool, tls *Keys) string {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Skip("docker-registry is not installed; scripts/deps.sh test installs it")
	}
	dir := t.TempDir()
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp:\n  addr: %s\n", dir, addr)
		if tls != nil {
			config += fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", tls.Cert, tls.Key)
		}
		if password {
			file := filepath.Join(dir, "htpasswd")
			if err := os.WriteFile(file, []byte(User+":"+hash+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			config += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %s}\n", file)
		}
		file := filepath.Join(dir, "config.yml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		cmd := exec.Command(program, "serve", file)
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		if listens(addr, ended) {
			t.Cleanup(func() {
				cmd.Process.Kill()
				<-ended
				if testing.Verbose() && t.Failed() {
					t.Logf("docker-registry: %s", log.String())
				}
			})
			return addr
		}
		cmd.Process.Kill()
		<-ended
		t.Logf("docker-registry at %s: %s", addr, log.String())
	}
	t.Fatal("docker-registry does not start")
	return ""
}

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

// find looks for the program in PATH, and where scripts/deps.sh puts it.
func find() (string, error) {
	program, err := exec.LookPath("docker-registry")
	if err == nil {
		return program, nil
	}
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
