package clients

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// TestBuildkit: buildkitd keeps what it builds in berthd, by its containerd worker,
// and goes on when berthd was killed. What it built is pulled and run.
func TestBuildkit(t *testing.T) {
	buildkitd, buildctl := programs.Tool("bin/buildkitd"), programs.Tool("bin/buildctl")
	if _, err := os.Stat(buildkitd); err != nil {
		t.Skip("buildkitd is not built; scripts/deps.sh clients does it")
	}
	d := start(t)
	r, err := harness.StartRegistry(programs, harness.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.MkdirTemp("", "berth-buildkit-") // shorter than TempDir, for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	berth := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), programs.Path("berth"), append([]string{"--address", d.Address}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("berth %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	base := r.Host + "/base:1"
	image, err := testimage.Busybox(base, testimage.BusyboxPath)
	if err != nil {
		needed.Missing(t, err)
	}
	layout, err := testimage.NewLayout(testimage.Gzip, image)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := layout.WriteTar(&archive); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		at := filepath.Join(dir, name)
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return at
	}
	berth("images", "import", "--no-unpack", write("base.tar", archive.String()))
	berth("push", base)

	config := write("buildkitd.toml", fmt.Sprintf("[registry.%q]\n  http = true\n[worker.oci]\n  enabled = false\n[worker.containerd]\n"+
		"  enabled = true\n  address = %q\n  namespace = \"buildkit\"\n  networkMode = \"host\"\n  snapshotter = \"overlayfs\"\n", r.Host, d.Address))
	socket := "unix://" + filepath.Join(dir, "sock")
	var log bytes.Buffer
	cmd := exec.Command(buildkitd, "--config", config, "--root", filepath.Join(dir, "root"), "--addr", socket)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("buildkitd's log:\n%s", tail(log.String(), 40))
		}
	})
	control := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "timeout", append([]string{"120", buildctl, "--addr", socket}, args...)...).CombinedOutput()
		return string(out), err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := control("debug", "workers")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("buildkitd does not answer: %v: %s", err, out)
		}
	}
	build := func(name, said string, more ...string) {
		t.Helper()
		write("Dockerfile", fmt.Sprintf("FROM %s AS one\nRUN echo %s >/said && mkdir -p /d && echo 1 >/d/1 && rm -f /etc/passwd\n"+
			"FROM one\nCOPY Dockerfile /d/Dockerfile\nRUN --mount=type=cache,target=/cache echo x >>/cache/f\n", base, said))
		output := "type=image,name=" + r.Host + "/" + name + ",push=true,registry.insecure=true"
		args := append([]string{"build", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir,
			"--output", strings.Join(append([]string{output}, more...), ",")}, "--progress", "plain")
		if out, err := control(args...); err != nil {
			t.Fatalf("build of %s: %v: %s", name, err, out)
		}
		out := berth("run", "--rm", "--pull", "always", r.Host+"/"+name, "/bin/sh", "-c", "cat /said /d/1; test -e /etc/passwd || echo gone; test -s /d/Dockerfile")
		if !strings.HasSuffix(out, said+"\n1\ngone\n") {
			t.Errorf("%s says %q", name, out)
		}
	}
	build("made:1", "first")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	build("made:2", "second", "compression=zstd", "force-compression=true")
	if out, err := control("prune", "--all"); err != nil {
		t.Errorf("prune: %v: %s", err, out)
	}
	if out := berth("fsck"); !strings.Contains(out, "nothing is damaged") {
		t.Errorf("fsck: %s", out)
	}
}
