package scripts

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/test/harness"
)

// gate is a registry's front door: it stops in the middle of the first large blob,
// until whoever asked has left.
type gate struct {
	Host string
	held chan struct{} // closed once it has stopped
	left chan struct{} // closed once who asked has left

	once   sync.Once
	mu     sync.Mutex
	ranges []string // asked for, of blobs
}

// heldAt is how many bytes of a blob pass before it stops: more than the daemon reads
// at once.
const heldAt = 5 << 18

func newGate(t *testing.T, r *harness.Registry) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Host: l.Addr().String(), held: make(chan struct{}), left: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // who asked is gone
	proxy.ModifyResponse = func(resp *http.Response) error {
		if !strings.Contains(resp.Request.URL.Path, "/blobs/") || resp.Request.Method != http.MethodGet {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.ranges = append(g.ranges, resp.Request.Header.Get("Range"))
		if resp.ContentLength > heldAt {
			g.once.Do(func() { resp.Body = &heldBody{ReadCloser: resp.Body, g: g, ctx: resp.Request.Context()} })
		}
		return nil
	}
	proxy.FlushInterval = -1
	server := &http.Server{Handler: proxy}
	served := make(chan struct{})
	go func() { server.Serve(l); close(served) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return g
}

func (g *gate) asked() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.ranges...)
}

// heldBody is a body that stops.
type heldBody struct {
	io.ReadCloser
	g    *gate
	ctx  context.Context
	read int
}

func (b *heldBody) Read(p []byte) (int, error) {
	if b.read >= heldAt {
		close(b.g.held)
		<-b.ctx.Done()
		close(b.g.left)
		return 0, b.ctx.Err()
	}
	p = p[:min(len(p), heldAt-b.read)]
	n, err := b.ReadCloser.Read(p)
	b.read += n
	return n, err
}

// TestPullCutOff ends the daemon, and the client, in the middle of a pull. The pull is
// run again, and goes on where it was.
func TestPullCutOff(t *testing.T) {
	r, err := harness.StartRegistry(programs, harness.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, cut := range map[string]func(t *testing.T, d *harness.Daemon, client *os.Process){
		"daemon": func(t *testing.T, d *harness.Daemon, _ *os.Process) {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
		},
		"client": func(t *testing.T, _ *harness.Daemon, client *os.Process) {
			if err := client.Kill(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { pullCutOff(t, r, cut) })
	}
}

// begun waits until the daemon has written some of the blob.
func begun(d *session) {
	d.t.Helper()
	conn, err := d.Dial()
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(d.t.Context(), "containerd-namespace", d.namespace), patience)
	defer cancel()
	for {
		r, err := contentgrpc.NewContentClient(conn).ListStatuses(ctx, &content.ListStatusesRequest{})
		if err != nil {
			d.t.Fatal(err)
		}
		for _, s := range r.GetStatuses() {
			if s.GetOffset() > 0 {
				return
			}
		}
	}
}

func pullCutOff(t *testing.T, r *harness.Registry, cut func(*testing.T, *harness.Daemon, *os.Process)) {
	d := begin(t, "pull", "DOCKER_CONFIG="+t.TempDir())
	d.must("images", "import", programs.Image)
	d.must("images", "convert", "--layers", "plain", harness.ImageName, r.Host+"/team/box:1") // so that there is more of it
	d.must("push", r.Host+"/team/box:1")
	d.must("images", "rm", "--sync", harness.ImageName, r.Host+"/team/box:1")

	g := newGate(t, r)
	name := g.Host + "/team/box:1"
	pull := d.berth("pull", name)
	var said bytes.Buffer
	pull.Stdout, pull.Stderr = &said, &said
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- pull.Wait() }()
	select {
	case <-g.held:
	case err := <-ended:
		t.Fatalf("the pull ended before it was cut off: %v\n%s", err, said.String())
	}
	begun(d)
	cut(t, d.Daemon, pull.Process)
	if err := <-ended; err == nil {
		t.Fatalf("the pull came to an end:\n%s", said.String())
	}
	<-g.left
	if d.PID() == 0 {
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if out := d.must("images", "ls", "-q"); out != "" {
		t.Errorf("images of half a pull: %s", out)
	}
	d.must("pull", name)
	resumed := false
	for _, asked := range g.asked() {
		resumed = resumed || strings.HasPrefix(asked, "bytes=")
	}
	if !resumed {
		t.Errorf("the pull began anew: %q", g.asked())
	}
	if out := d.must("run", "--rm", "--pull", "never", name, "echo", "whole"); out != "whole\n" {
		t.Errorf("the container said %q", out)
	}
}
