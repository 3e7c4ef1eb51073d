package scenario

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/berthd/berth/bench/internal/ociimage"
	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const pullRepo = "bench/large"

func pullScenario() *Scenario {
	return &Scenario{
		Name:    "pull",
		Title:   "Pull with unpack of the large image from a registry on loopback; the limit pipes each layer from HTTP into the system's tools, as many at once as there are processors",
		Rounds:  func(p *Params) int { return p.PullRounds },
		Prepare: preparePull,
		Round: func(ctx context.Context, r *Run, round int) error {
			for _, c := range []ociimage.Compression{ociimage.Gzip, ociimage.Zstd} {
				unix.Sync()
				if err := r.pullOnce(ctx, c, round == 0); err != nil {
					return fmt.Errorf("%s: %w", c, err)
				}
			}
			return nil
		},
		LimitRound: func(ctx context.Context, r *Run, round int) error {
			for _, c := range []ociimage.Compression{ociimage.Gzip, ociimage.Zstd} {
				unix.Sync()
				if err := r.fetchAndExtract(ctx, c); err != nil {
					return fmt.Errorf("%s: %w", c, err)
				}
			}
			return nil
		},
	}
}

func preparePull(ctx context.Context, e *Env) error {
	if err := prepareLarge(ctx, e); err != nil {
		return err
	}
	if e.registry == nil {
		s, err := startRegistry(filepath.Join(e.WorkDir, "registry"), "docker-registry")
		if err != nil {
			return err
		}
		e.registry = s
	}
	for c, img := range e.large {
		if err := e.registry.push(ctx, img, pullRepo, string(c)); err != nil {
			return fmt.Errorf("push: %w", err)
		}
	}
	return nil
}

// Close ends what the scenarios started for themselves.
func (e *Env) Close() {
	if e.registry != nil {
		e.registry.stop()
	}
}

func (r *Run) pullOnce(ctx context.Context, c ociimage.Compression, verify bool) error {
	img := r.large[c]
	ref := r.registry.ref(pullRepo, string(c))
	if err := procfs.ForgetPeak(r.D.Pid()); err != nil {
		return err
	}
	begin := time.Now()
	err := r.transfer(ctx, ref)
	if errdefs.IsNotImplemented(err) {
		r.note("no Transfer service: the client fetches and has the daemon unpack")
		begin = time.Now()
		err = r.pullByClient(ctx, ref)
	}
	if err != nil {
		return err
	}
	took := time.Since(begin)
	r.seconds(string(c)+" pull+unpack", took)
	r.addMBs(string(c)+" pull+unpack rate", img.TarBytes, took)
	peak, err := procfs.Peak(r.D.Pid())
	if err != nil {
		return err
	}
	r.add("daemon Rss at most", "KiB", report.Lower, float64(peak))
	if verify {
		if err := r.verifyRootfs(ctx, img); err != nil {
			return err
		}
	}
	return r.dropImage(ctx, ref, img)
}

// transfer has the daemon pull, as clients do that know of its Transfer service.
func (r *Run) transfer(ctx context.Context, ref string) error {
	from, err := registry.NewOCIRegistry(ctx, ref, registry.WithHostDir(r.registry.hosts))
	if err != nil {
		return err
	}
	to := image.NewStore(ref, image.WithUnpack(platforms.DefaultSpec(), r.D.Config.Snapshotter))
	return r.D.Client.Transfer(ctx, from, to)
}

// pullByClient fetches in this process, as clients did before.
func (r *Run) pullByClient(ctx context.Context, ref string) error {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithClient(r.registry.keys.client)),
	})
	_, err := r.D.Client.Pull(ctx, ref, client.WithPullUnpack,
		client.WithPullSnapshotter(r.D.Config.Snapshotter), client.WithResolver(resolver))
	return err
}

func (r *Run) fetchAndExtract(ctx context.Context, c ociimage.Compression) error {
	img := r.large[c]
	dir := filepath.Join(r.WorkDir, "fetch")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	begin := time.Now()
	streams, ctx := errgroup.WithContext(ctx)
	streams.SetLimit(runtime.NumCPU())
	for i, l := range img.Layers {
		streams.Go(func() error {
			to := filepath.Join(dir, strconv.Itoa(i))
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			return r.fetchLayer(ctx, c, r.registry.blobURL(pullRepo, l.Digest), to)
		})
	}
	if err := streams.Wait(); err != nil {
		return err
	}
	took := time.Since(begin)
	r.seconds(string(c)+" pull+unpack", took)
	r.addMBs(string(c)+" pull+unpack rate", img.TarBytes, took)
	return nil
}

func (r *Run) fetchLayer(ctx context.Context, c ociimage.Compression, url, dir string) error {
	resp, err := r.registry.keys.client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch: %s", resp.Status)
	}
	return extractStream(ctx, c, resp.Body, dir)
}

// extractStream decompresses and extracts a stream with the system's tools.
func extractStream(ctx context.Context, c ociimage.Compression, in io.Reader, dir string) error {
	unzip := "gzip -dc"
	if _, err := exec.LookPath("pigz"); err == nil { // the faster one
		unzip = "pigz -dc"
	}
	if c == ociimage.Zstd {
		unzip = "zstd -dcq"
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", unzip+` | tar -xf - -C "$1"`, "sh", dir)
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("extract: %w: %s", err, out)
	}
	return nil
}
