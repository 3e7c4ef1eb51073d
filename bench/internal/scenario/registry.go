package scenario

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/ociimage"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// registryServer is a registry process on loopback, by TLS.
type registryServer struct {
	addr string
	cmd  *exec.Cmd
	keys *keys
	// hosts is a directory that tells clients and daemons what key to trust.
	hosts string
}

const registryConfig = `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %s
http:
  addr: %s
  tls: {certificate: %s, key: %s}
`

// startRegistry runs the docker-registry program.
func startRegistry(dir, program string) (*registryServer, error) {
	bin, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	made, err := makeKeys(dir)
	if err != nil {
		return nil, err
	}
	hosts := filepath.Join(dir, "hosts")
	if err := trust(hosts, addr, made.cert); err != nil {
		return nil, err
	}
	cfg := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(cfg, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "data"), addr, made.cert, made.key), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(bin, "serve", cfg)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &registryServer{addr: addr, cmd: cmd, keys: made, hosts: hosts}
	for range 200 {
		resp, err := made.client.Get(s.url("/v2/"))
		if err == nil {
			resp.Body.Close()
			return s, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.stop()
	return nil, fmt.Errorf("registry does not answer")
}

// trust makes the directory of a host as docker and containerd read it.
func trust(hosts, addr, cert string) error {
	dir := filepath.Join(hosts, addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(cert)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ca.crt"), data, 0o644)
}

func (s *registryServer) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *registryServer) url(path string) string { return "https://" + s.addr + path }

func (s *registryServer) ref(repo, tag string) string { return s.addr + "/" + repo + ":" + tag }

func (s *registryServer) blobURL(repo string, d digest.Digest) string {
	return s.url("/v2/" + repo + "/blobs/" + d.String())
}

// push uploads an image over the registry's HTTP API.
func (s *registryServer) push(ctx context.Context, img *ociimage.Image, repo, tag string) error {
	for _, d := range append([]v1.Descriptor{img.Config}, img.Layers...) {
		if err := s.pushBlob(ctx, img, repo, d); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(img.BlobPath(img.Manifest.Digest))
	if err != nil {
		return err
	}
	_, err = s.send(ctx, http.MethodPut, s.url("/v2/"+repo+"/manifests/"+tag), img.Manifest.MediaType, bytes.NewReader(b), int64(len(b)))
	return err
}

func (s *registryServer) pushBlob(ctx context.Context, img *ociimage.Image, repo string, d v1.Descriptor) error {
	location, err := s.send(ctx, http.MethodPost, s.url("/v2/"+repo+"/blobs/uploads/"), "", nil, 0)
	if err != nil {
		return err
	}
	u, err := url.Parse(location)
	if err != nil {
		return err
	}
	q := u.Query()
	q.Set("digest", d.Digest.String())
	u.RawQuery = q.Encode()
	f, err := os.Open(img.BlobPath(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.send(ctx, http.MethodPut, u.String(), "application/octet-stream", f, d.Size)
	return err
}

func (s *registryServer) send(ctx context.Context, method, target, contentType string, body io.Reader, size int64) (location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return "", err
	}
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.keys.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	msg, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s: %s: %s", method, resp.Status, msg)
	}
	return resp.Header.Get("Location"), nil
}
