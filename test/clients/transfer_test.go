package clients

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	imagestore "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"github.com/berthd/berth/test/harness"
)

// startRegistry runs a registry for one test.
func startRegistry(t *testing.T, o harness.RegistryOptions) *harness.Registry {
	t.Helper()
	r, err := harness.StartRegistry(programs, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("registry: %s", r.Log())
		}
	})
	return r
}

// account gives the registries' account, and counts who asks.
type account struct {
	mu    sync.Mutex
	hosts []string
}

func (a *account) GetCredentials(_ context.Context, ref, host string) (registry.Credentials, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hosts = append(a.hosts, ref+" at "+host)
	return registry.Credentials{Host: host, Username: harness.RegistryUser, Secret: harness.RegistryPassword}, nil
}

// events collects progress.
type events struct {
	mu  sync.Mutex
	all []transfer.Progress
}

func (e *events) add(p transfer.Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, p)
}

// has tells whether there was an event of something whose name begins so.
func (e *events) has(event, name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.all {
		if p.Event == event && strings.HasPrefix(p.Name, name) {
			return true
		}
	}
	return false
}

// file is a file that tells when it was closed, as the export stream of the client
// does at its end.
type file struct {
	*os.File
	once   sync.Once
	closed chan struct{}
}

func (f *file) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func TestGoClientTransfer(t *testing.T) {
	d := start(t)
	r := startRegistry(t, harness.RegistryOptions{Password: true})
	client, ctx := connect(t, d)
	importImage(t, ctx, client)
	name := r.Host + "/team/box:1"
	if err := client.Transfer(ctx, imagestore.NewStore(harness.ImageName), imagestore.NewStore(name)); err != nil {
		t.Fatalf("tag: %v", err)
	}
	who := &account{}
	remote, err := registry.NewOCIRegistry(ctx, name, registry.WithCredentials(who))
	if err != nil {
		t.Fatal(err)
	}
	var pushed events
	if err := client.Transfer(ctx, imagestore.NewStore(name), remote, transfer.WithProgress(pushed.add)); err != nil {
		t.Fatalf("push: %v", err)
	}
	if len(who.hosts) == 0 || who.hosts[0] != name+" at "+r.Host {
		t.Errorf("credentials were asked for by %q", who.hosts)
	}
	before, err := client.ImageService().Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{harness.ImageName, name} {
		if err := client.ImageService().Delete(ctx, old); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, ctx, client)
	pull(t, ctx, client, remote, name)
	after, err := client.GetImage(ctx, name)
	if err != nil || after.Target().Digest != before.Target.Digest {
		t.Fatalf("pulled %v, %v", after, err)
	}
	if ok, err := after.IsUnpacked(ctx, ""); err != nil || !ok {
		t.Fatalf("unpacked: %v, %v", ok, err)
	}
	if err := life(ctx, client, after, mark(t), 3); err != nil {
		t.Fatal(err)
	}
	exportAndImport(t, ctx, client, name)

	// What is wrong has its kind.
	nobody, err := registry.NewOCIRegistry(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	none, err := registry.NewOCIRegistry(ctx, r.Host+"/team/none:1", registry.WithCredentials(who))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Transfer(ctx, nobody, imagestore.NewStore("a:1")); !errdefs.IsUnauthorized(err) {
		t.Errorf("without an account: %v", err)
	}
	if err := client.Transfer(ctx, none, imagestore.NewStore("a:1")); !errdefs.IsNotFound(err) {
		t.Errorf("an image that is not there: %v", err)
	}
	if err := client.Transfer(ctx, remote, none); !errdefs.IsNotImplemented(err) {
		t.Errorf("registry to registry: %v", err)
	}
}

// pull pulls the way ctr does, and looks at the progress.
func pull(t *testing.T, ctx context.Context, client *containerd.Client, from *registry.OCIRegistry, name string) {
	t.Helper()
	var pulled events
	own := platforms.DefaultSpec()
	to := imagestore.NewStore(name, imagestore.WithPlatforms(own), imagestore.WithUnpack(own, ""), imagestore.WithAllMetadata, imagestore.WithImageLabels(map[string]string{"a": "b"}))
	if err := client.Transfer(ctx, from, to, transfer.WithProgress(pulled.add)); err != nil {
		t.Fatalf("pull: %v", err)
	}
	row, err := client.ImageService().Get(ctx, name)
	if err != nil || row.Labels["a"] != "b" {
		t.Errorf("labels %v, %v", row.Labels, err)
	}
	// The client does not wait for the last of it.
	if !pulled.has("fetching image content", name) || !pulled.has("waiting", "layer-sha256:") && !pulled.has("complete", "layer-sha256:") && !pulled.has("extracted", "layer-sha256:") {
		t.Errorf("progress %+v", pulled.all)
	}
}

// collect runs a collection, as clients do it.
func collect(t *testing.T, ctx context.Context, client *containerd.Client) {
	t.Helper()
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
}

// exportAndImport brings an image out and in again.
func exportAndImport(t *testing.T, ctx context.Context, client *containerd.Client, name string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := &file{File: f, closed: make(chan struct{})}
	if err := client.Transfer(ctx, imagestore.NewStore(name), archive.NewImageExportStream(out, "")); err != nil {
		t.Fatalf("export: %v", err)
	}
	// Nothing of what matters is missing although nobody waited for the stream's end.
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for r, files := tar.NewReader(bytes.NewReader(data)), 0; ; files++ {
		_, err := r.Next()
		if errors.Is(err, io.EOF) && files >= 5 {
			break
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			t.Fatalf("file %d of the archive: %v", files, err)
		}
	}
	<-out.closed
	target, err := client.ImageService().Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.ImageService().Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	collect(t, ctx, client)
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	own := platforms.DefaultSpec()
	to := imagestore.NewStore("", imagestore.WithNamedPrefix("import", true), imagestore.WithPlatforms(own), imagestore.WithUnpack(own, ""))
	if err := client.Transfer(ctx, archive.NewImageImportStream(in, ""), to); err != nil {
		t.Fatalf("import: %v", err)
	}
	again, err := client.GetImage(ctx, name)
	if err != nil || again.Target().Digest != target.Target.Digest {
		t.Fatalf("imported %v, %v", again, err)
	}
	if ok, err := again.IsUnpacked(ctx, ""); err != nil || !ok {
		t.Fatalf("unpacked: %v, %v", ok, err)
	}
}

// Bytes pass through the daemon as they are.
func TestGoClientEcho(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	data := bytes.Repeat([]byte("there and back"), 100_000)
	read, write := io.Pipe()
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(read)
		got <- all
	}()
	err := client.Transfer(ctx, archive.NewImageImportStream(bytes.NewReader(data), ""), archive.NewImageExportStream(write, ""))
	if err != nil {
		t.Fatal(err)
	}
	if all := <-got; !bytes.Equal(all, data) {
		t.Errorf("%d bytes came back of %d", len(all), len(data))
	}
}

// TestCtrRegistry has ctr push and pull, over Transfer and by itself.
func TestCtrRegistry(t *testing.T) {
	binary := programs.Tool("bin/ctr")
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: run scripts/deps.sh test", err)
	}
	for name, local := range map[string][]string{"transfer": nil, "local": {"--local"}} {
		t.Run(name, func(t *testing.T) {
			c := ctr{t, binary, start(t)}
			r := startRegistry(t, harness.RegistryOptions{Password: true})
			with := func(args ...string) []string {
				flags := append([]string{"--plain-http", "--user", harness.RegistryUser + ":" + harness.RegistryPassword}, local...)
				return append(append(args, flags...), r.Host+"/team/box:1")
			}
			c.run(append(append([]string{"images", "import"}, local...), programs.Image)...)
			c.run(append(append([]string{"images", "tag"}, local...), harness.ImageName, r.Host+"/team/box:1")...)
			c.run(with("images", "push")...)
			c.run("images", "rm", "--sync", harness.ImageName, r.Host+"/team/box:1")
			c.run(with("images", "pull")...)
			c.want(c.run("images", "check"), `box:1.*complete.*true`)
			path := filepath.Join(t.TempDir(), "out.tar")
			c.run(append(append([]string{"images", "export"}, local...), path, r.Host+"/team/box:1")...)
			c.run("images", "rm", "--sync", r.Host+"/team/box:1")
			c.run(append(append([]string{"images", "import"}, local...), path)...)
			c.want(c.run("images", "check"), `box:1.*complete.*true`)
			if _, errs, code := c.try(append(append([]string{"images", "pull", "--plain-http"}, local...), r.Host+"/team/box:1")...); code == 0 {
				t.Errorf("pulled without an account: %s", errs)
			}
			c.want(c.run("run", "--rm", r.Host+"/team/box:1", mark(t), "echo", "from a registry"), `^from a registry\n$`)
		})
	}
}
