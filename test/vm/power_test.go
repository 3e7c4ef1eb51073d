package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	berthimages "github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/test/harness"
)

const (
	powerImages = 4
	// powerDisk is the disk that outlives the machine's power.
	powerDisk = "/data"
	powerTime = 5 * time.Minute // of any one thing that the test waits for
)

// power is what a round of TestPower knows.
type power struct {
	t        *testing.T
	client   *client.Client
	names    []string
	archives [][]byte
}

// TestPower is one life of a machine whose power is cut: scripts/power.sh boots it
// again and again on the same disk. It looks whether the last cut has left the store
// whole, and every image that was there for good before it; then it pulls, imports and
// removes images until the next cut. BERTH_POWER is the number of the round, and
// BERTH_POWER_LAST says that none follows.
func TestPower(t *testing.T) {
	round, err := strconv.ParseUint(os.Getenv("BERTH_POWER"), 10, 64)
	if err != nil {
		t.Skip("scripts/power.sh runs it, in a machine of its own")
	}
	programs, err := harness.Build("")
	if err != nil {
		t.Fatal(err)
	}
	registry, err := harness.StartRegistry(programs, harness.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	p := &power{t: t}
	p.stock(registry)
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Root = filepath.Join(powerDisk, "root")
	d.Args = []string{"--log-level", "info"}
	if err := d.Start(); err != nil {
		t.Fatalf("the store does not open: %v", err)
	}
	if p.client, err = client.Dial(t.Context(), d.Address, client.Options{Namespace: "power"}); err != nil {
		t.Fatal(err)
	}
	defer p.client.Close()
	p.check("after the cut")
	p.acknowledged()
	if t.Failed() {
		t.Logf("the daemon's log:\n%s", d.Log())
		return
	}
	last := os.Getenv("BERTH_POWER_LAST") != ""
	fmt.Printf("vm: busy %d\n", round)
	ctx, cancel := context.WithCancel(t.Context())
	if last {
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	}
	defer cancel()
	var all sync.WaitGroup
	for n := range powerImages / 2 {
		r := rand.New(rand.NewPCG(round, uint64(n)))
		all.Go(func() {
			for ctx.Err() == nil {
				p.operate(r, n+r.IntN(2)*powerImages/2) // an image is one worker's alone
			}
		})
	}
	all.Wait()
	p.check("in the end")
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
}

// stock makes the images, the same in every round, and puts them into the registry.
func (p *power) stock(registry *harness.Registry) {
	var named []string
	for n := range powerImages {
		named = append(named, fmt.Sprintf("power/image%d:latest", n))
	}
	layouts, err := harness.RandomImages{Base: 200, Layer: 100, File: 12_000}.Make(rand.New(rand.NewPCG(1, 2)), named...)
	if err != nil {
		p.t.Fatal(err)
	}
	for n, layout := range layouts {
		var archive bytes.Buffer
		err := layout.WriteTar(&archive)
		var files map[string][]byte
		if err == nil {
			files, err = layout.Files()
		}
		if err != nil {
			p.t.Fatal(err)
		}
		p.push(registry.URL, fmt.Sprintf("power/image%d", n), files)
		p.names = append(p.names, registry.Host+"/"+named[n])
		p.archives = append(p.archives, archive.Bytes())
	}
}

// push puts the blobs of a layout into a registry, and its manifest as latest.
func (p *power) push(url, name string, files map[string][]byte) {
	var index ocispec.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		p.t.Fatal(err)
	}
	manifest := index.Manifests[0]
	for path, data := range files {
		hex, ok := strings.CutPrefix(path, "blobs/sha256/")
		if !ok || hex == manifest.Digest.Encoded() {
			continue
		}
		resp := p.request(http.MethodPost, url+"/v2/"+name+"/blobs/uploads/", "", nil)
		at := resp.Header.Get("Location")
		separator := "?"
		if strings.Contains(at, "?") {
			separator = "&"
		}
		p.request(http.MethodPut, at+separator+"digest=sha256:"+hex, "application/octet-stream", data)
	}
	p.request(http.MethodPut, url+"/v2/"+name+"/manifests/latest", manifest.MediaType, files["blobs/sha256/"+manifest.Digest.Encoded()])
}

func (p *power) request(method, url, mediaType string, body []byte) *http.Response {
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		p.t.Fatalf("%s %s: %s", method, url, resp.Status)
	}
	return resp
}

// check has the daemon read everything: rows, blobs, and each file of each layer.
func (p *power) check(when string) {
	ctx, cancel := context.WithTimeout(context.Background(), powerTime)
	defer cancel()
	if err := harness.Check(ctx, p.client.Maintenance(), &maintenance.CheckRequest{ReadContent: true, Images: true}); err != nil {
		p.t.Errorf("%s: %v", when, err)
	}
}

// acknowledged looks for the images that were there for good before the cut. The
// registry's port is another one by now, so they go by their names without it.
func (p *power) acknowledged() {
	ctx, cancel := context.WithTimeout(context.Background(), powerTime)
	defer cancel()
	list, err := p.client.Images().List(ctx, &images.ListImagesRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	there := map[string]bool{}
	for _, image := range list.GetImages() {
		_, path, _ := strings.Cut(image.GetName(), "/")
		there[path] = true
		// What is of another port is in the way of nothing, and of no more use.
		if _, err := p.client.Images().Delete(ctx, &images.DeleteImageRequest{Name: image.GetName(), Sync: true}); err != nil {
			p.t.Error(err)
		}
	}
	for n := range powerImages {
		_, err := os.Stat(ack(n))
		if err == nil && !there[fmt.Sprintf("power/image%d:latest", n)] {
			p.t.Errorf("image %d was there before the cut, and is gone; there are %v", n, there)
		}
		if err := p.forget(n); err != nil {
			p.t.Error(err)
		}
	}
	fmt.Printf("vm: %d images were there\n", len(list.GetImages()))
}

// ack is the file that says that an image is there for good.
func ack(n int) string { return filepath.Join(powerDisk, fmt.Sprint("there", n)) }

// remember says that an image is there for good.
func (p *power) remember(n int) error {
	f, err := os.Create(ack(n))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), p.flush())
}

// forget takes that back.
func (p *power) forget(n int) error {
	if err := os.Remove(ack(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return p.flush()
}

func (p *power) flush() error {
	dir, err := os.Open(powerDisk)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// operate does one thing to an image.
func (p *power) operate(r *rand.Rand, n int) {
	ctx, cancel := context.WithTimeout(context.Background(), powerTime)
	defer cancel()
	var err error
	switch k := r.IntN(10); {
	case k < 4:
		_, err = p.client.Pull(ctx, p.names[n], client.PullOptions{Platforms: []string{"linux/amd64"}, Registry: client.Registry{PlainHTTP: true}})
		if err == nil {
			err = p.remember(n)
		}
	case k < 6:
		name := &berthimages.ImportOptions{Platform: "linux/amd64"}
		_, err = p.client.Import(ctx, bytes.NewReader(p.archives[n]), name, nil)
	default:
		if err = p.forget(n); err == nil {
			for _, name := range []string{p.names[n], fmt.Sprintf("docker.io/power/image%d:latest", n)} {
				_, failed := p.client.Images().Delete(ctx, &images.DeleteImageRequest{Name: name, Sync: r.IntN(2) == 0})
				if !errdefs.IsNotFound(failed) {
					err = errors.Join(err, failed)
				}
			}
		}
	}
	if err != nil {
		p.t.Errorf("image %d: %v", n, err)
		fmt.Printf("vm: failed: image %d: %v\n", n, err) // the test may not live to say so
		return
	}
	fmt.Println("vm: done")
}
