package remotes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/testregistry"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	testUser     = testregistry.User
	testPassword = testregistry.Password
)

// quick is a client whose patience is for tests.
func quick(t *testing.T, config Config) *Client {
	t.Helper()
	if config.FirstPause == 0 {
		config.FirstPause = time.Millisecond
	}
	if config.LongestPause == 0 {
		config.LongestPause = 20 * time.Millisecond
	}
	c := New(config)
	t.Cleanup(c.Close)
	return c
}

func refer(t *testing.T, text string) Reference {
	t.Helper()
	ref, err := ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func open(t *testing.T, c *Client, text string, access Access) *Repository {
	t.Helper()
	r, err := c.Open(refer(t, text), access)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// describe makes a descriptor of bytes.
func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func opener(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// image makes an image of one layer: its blobs, and the manifest.
func image(t *testing.T, seed string, size int, subject *ocispec.Descriptor) (blobs [][]byte, desc ocispec.Descriptor, manifest []byte) {
	t.Helper()
	layer := bytes.Repeat([]byte(seed), size/len(seed)+1)[:size]
	config := []byte(`{"architecture":"amd64","os":"linux","author":"` + seed + `"}`)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Subject: subject,
		Config: describe(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{describe(ocispec.MediaTypeImageLayer, layer)}}
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{config, layer}, describe(ocispec.MediaTypeImageManifest, manifest), manifest
}

func pushImage(t *testing.T, r *Repository, blobs [][]byte, desc ocispec.Descriptor, manifest []byte, tag string) {
	t.Helper()
	for _, data := range blobs {
		if _, err := r.PushBlob(t.Context(), describe("application/octet-stream", data), nil, opener(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.PushManifest(t.Context(), desc, manifest, tag); err != nil {
		t.Fatal(err)
	}
}

// TestRegistry pushes to a registry and pulls from it, in the ways a registry can be
// reached.
func TestRegistry(t *testing.T) {
	leak.CheckProcess(t)
	dir := t.TempDir()
	made := testregistry.MakeKeys(t, dir)
	for name, c := range map[string]struct {
		password bool
		tls      *testregistry.Keys
	}{"plain": {}, "password": {password: true}, "TLS": {tls: &made}, "TLS and password": {true, &made}} {
		t.Run(name, func(t *testing.T) {
			host := testregistry.Start(t, c.password, c.tls)
			certs := t.TempDir()
			if c.tls != nil {
				data, err := os.ReadFile(made.CA)
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(certs, host, "ca.crt"), string(data))
			}
			access := Access{}
			if c.password {
				access.Credentials = func(_ context.Context, req CredentialRequest) (Credential, error) {
					if req.Host != host || !strings.HasPrefix(req.Reference, host+"/") || len(req.Challenges) != 1 {
						t.Errorf("credentials wanted by %+v", req)
					}
					return Credential{Username: testUser, Password: testPassword}, nil
				}
			}
			client := quick(t, Config{HostsDir: certs})
			useRegistry(t, client, host, access)
			if c.password {
				refuses(t, client, host)
			}
		})
	}
}

func useRegistry(t *testing.T, client *Client, host string, access Access) {
	ctx := t.Context()
	r := open(t, client, host+"/some/image:v1", access)
	if err := r.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if desc, err := r.Resolve(ctx); !errdefs.IsNotFound(err) {
		t.Fatalf("resolve before the push: %v, %v", desc, err)
	}
	blobs, desc, manifest := image(t, "layer", 3<<20, nil)
	pushImage(t, r, blobs, desc, manifest, "v1")
	for name, get := range map[string]func() (ocispec.Descriptor, error){
		"tag": func() (ocispec.Descriptor, error) { return r.Resolve(ctx) },
		"get": func() (ocispec.Descriptor, error) { d, _, err := r.Get(ctx); return d, err },
		"digest": func() (ocispec.Descriptor, error) {
			return open(t, client, host+"/some/image@"+desc.Digest.String(), access).Resolve(ctx)
		},
	} {
		if got, err := get(); err != nil || got.Digest != desc.Digest || got.Size != desc.Size || got.MediaType != desc.MediaType {
			t.Errorf("resolve by %s: %+v, %v; want %+v", name, got, err, desc)
		}
	}
	if got, err := r.Manifest(ctx, desc); err != nil || !bytes.Equal(got, manifest) {
		t.Errorf("manifest: %q, %v", got, err)
	}
	layer := describe("", blobs[1])
	for _, at := range []int64{0, 1, 1 << 20, layer.Size - 1, layer.Size} {
		if got, err := fetch(t, r, layer, at); err != nil || !bytes.Equal(got, blobs[1][at:]) {
			t.Errorf("blob from %d: %d bytes, %v", at, len(got), err)
		}
	}
	for data, want := range map[string]bool{string(blobs[1]): true, "none": false} {
		if is, err := r.Exists(ctx, describe("", []byte(data))); err != nil || is != want {
			t.Errorf("exists: %v, %v, want %v", is, err, want)
		}
	}
	if is, err := r.Exists(ctx, desc); err != nil || !is {
		t.Errorf("the manifest exists: %v, %v", is, err)
	}
	if how, err := r.PushBlob(ctx, layer, nil, nil); err != nil || how != Existed {
		t.Errorf("push again: %s, %v", how, err)
	}
	other := open(t, client, host+"/other:v2", access)
	if how, err := other.PushBlob(ctx, layer, []string{"no/such", "some/image"}, nil); err != nil || how != Mounted {
		t.Errorf("push from another repository: %s, %v", how, err)
	}
	if how, err := other.PushBlob(ctx, describe("", nil), []string{"no/such"}, opener(nil)); err != nil || how != Uploaded {
		t.Errorf("push of nothing: %s, %v", how, err)
	}
	if err := r.PushManifest(ctx, desc, manifest, "v2"); err != nil {
		t.Fatal(err)
	}
	if tags, err := r.Tags(ctx); err != nil || !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags %q, %v", tags, err)
	}
	if list, err := r.Referrers(ctx, desc, ""); err != nil || len(list) != 0 {
		t.Errorf("referrers %v, %v", list, err)
	}
	more, about, text := image(t, "signature", 100, &desc)
	pushImage(t, r, more, about, text, "")
	if list, err := r.Referrers(ctx, desc, ""); err != nil || len(list) != 1 || list[0].Digest != about.Digest {
		t.Errorf("referrers %v, %v", list, err)
	}
}

func fetch(t *testing.T, r *Repository, desc ocispec.Descriptor, at int64) ([]byte, error) {
	t.Helper()
	body, err := r.Blob(t.Context(), desc, at)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// refuses is of those without the password, or with another.
func refuses(t *testing.T, client *Client, host string) {
	for name, access := range map[string]Access{
		"nobody": {},
		"wrong": {Credentials: func(context.Context, CredentialRequest) (Credential, error) {
			return Credential{Username: testUser, Password: "wrong-secret"}, nil
		}},
		"error": {Credentials: func(context.Context, CredentialRequest) (Credential, error) {
			return Credential{}, errors.New("the keyring is locked")
		}},
	} {
		r := open(t, client, host+"/some/image:v1", access)
		_, resolve := r.Resolve(t.Context())
		_, push := r.PushBlob(t.Context(), describe("", []byte("x")), nil, opener([]byte("x")))
		for _, err := range []error{resolve, push, r.Ping(t.Context())} {
			if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), host) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", name, err)
			}
			if want := map[string]string{"nobody": "berth login " + host, "wrong": "berth login", "error": "the keyring is locked"}[name]; !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: %v lacks %q", name, err, want)
			}
		}
	}
}

// TestUntrusted is a registry whose certificate nobody vouches for, one that speaks
// no https, and one that isn't there: the error says what to do.
func TestUntrusted(t *testing.T) {
	leak.CheckProcess(t)
	made := testregistry.MakeKeys(t, t.TempDir())
	secure := testregistry.Start(t, false, &made)
	plain := testregistry.Start(t, false, nil)
	certs := t.TempDir()
	write(t, filepath.Join(certs, secure, hostsFile), fmt.Sprintf("server = 'https://%s'\n", secure))
	write(t, filepath.Join(certs, plain, hostsFile), fmt.Sprintf("server = 'https://%s'\n", plain))
	client := quick(t, Config{HostsDir: certs})
	for host, want := range map[string]string{secure: "certs.d/" + secure + "/ca.crt", plain: `server = "http://` + plain + `"`} {
		_, err := open(t, client, host+"/a:b", Access{}).Resolve(t.Context())
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	write(t, filepath.Join(certs, secure, hostsFile), fmt.Sprintf("server = 'https://%s'\nskip_verify = true\n", secure))
	if _, err := open(t, client, secure+"/a:b", Access{}).Resolve(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("with skip_verify: %v", err)
	}
	write(t, filepath.Join(certs, "gone.example:5000", hostsFile), "server = 'http://127.0.0.1:1'\n")
	if _, err := open(t, client, "gone.example:5000/a:b", Access{}).Resolve(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestMirrors asks mirrors first, with the name of the registry, and the registry
// for what they lack.
func TestMirrors(t *testing.T) {
	leak.CheckProcess(t)
	mirror, main := testregistry.Start(t, false, nil), testregistry.Start(t, false, nil)
	certs := t.TempDir()
	write(t, filepath.Join(certs, "registry.example", hostsFile), fmt.Sprintf(
		"server = 'http://%s'\n[host.'http://127.0.0.1:1']\ncapabilities = ['pull']\n[host.'http://%s']\ncapabilities = ['pull']\n", main, mirror))
	client := quick(t, Config{HostsDir: certs})
	blobs, desc, manifest := image(t, "layer", 1000, nil)
	r := open(t, client, "registry.example/a/b:v1", Access{})
	pushImage(t, r, blobs, desc, manifest, "v1")
	only := []byte("the mirror has this alone")
	if _, err := open(t, client, mirror+"/a/b", Access{}).PushBlob(t.Context(), describe("", only), nil, opener(only)); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Resolve(t.Context()); err != nil || got.Digest != desc.Digest {
		t.Errorf("resolve: %v, %v", got, err)
	}
	if got, err := r.Manifest(t.Context(), desc); err != nil || !bytes.Equal(got, manifest) {
		t.Errorf("manifest: %q, %v", got, err)
	}
	for _, data := range [][]byte{blobs[1], only} {
		if got, err := fetch(t, r, describe("", data), 3); err != nil || !bytes.Equal(got, data[3:]) {
			t.Errorf("blob: %q, %v", got, err)
		}
	}
	_, err := fetch(t, r, describe("", []byte("nobody has this")), 0)
	if !errdefs.IsNotFound(err) {
		t.Errorf("a blob that nobody has: %v", err)
	}
	for _, want := range []string{"127.0.0.1:1 (for registry.example): dial tcp", mirror + " (for registry.example): 404", main + " (for registry.example): 404"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}
