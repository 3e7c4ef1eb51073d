package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// importImage imports the test image through the Go client, as its own
// importer does it, and unpacks it.
func importImage(t *testing.T, ctx context.Context, client *containerd.Client) containerd.Image {
	t.Helper()
	f, err := os.Open(programs.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found, err := client.Import(ctx, f)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != harness.ImageName {
		t.Fatalf("imported %v", found)
	}
	image := containerd.NewImage(client, found[0])
	if err := image.Unpack(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if ok, err := image.IsUnpacked(ctx, ""); err != nil || !ok {
		t.Fatalf("unpacked: %v, %v", ok, err)
	}
	return image
}

// output collects what a process prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// life is a container from creation to removal: it prints, exits with code, and
// leaves nothing.
func life(ctx context.Context, client *containerd.Client, image containerd.Image, id string, code int) (err error) {
	var stdout, stderr output
	script := fmt.Sprintf("read line; echo \"out $line\"; echo err >&2; exit %d", code)
	container, err := client.NewContainer(ctx, id,
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sh", "-c", script)))
	if err != nil {
		return fmt.Errorf("new container: %w", err)
	}
	defer func() {
		if e := container.Delete(ctx, containerd.WithSnapshotCleanup); e != nil {
			err = errors.Join(err, fmt.Errorf("delete container: %w", e))
		}
	}()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(strings.NewReader(id+"\n"), &stdout, &stderr)))
	if err != nil {
		return fmt.Errorf("new task: %w", err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	status := <-exited
	if status.Error() != nil || int(status.ExitCode()) != code {
		return fmt.Errorf("exit code %d, %v; want %d", status.ExitCode(), status.Error(), code)
	}
	deleted, err := task.Delete(ctx)
	if err != nil {
		return fmt.Errorf("delete task: %w", err)
	}
	if int(deleted.ExitCode()) != code {
		return fmt.Errorf("delete says exit code %d, want %d", deleted.ExitCode(), code)
	}
	if got := stdout.String(); got != "out "+id+"\n" || stderr.String() != "err\n" {
		return fmt.Errorf("stdout %q, stderr %q", got, stderr.String())
	}
	return nil
}

func TestGoClientLife(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	for code := range 3 {
		if err := life(ctx, client, image, fmt.Sprintf("%s-%d", mark(t), code), code); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGoClientFiftyAtOnce(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	errs := make([]error, 50)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = life(ctx, client, image, fmt.Sprintf("%s-%d", mark(t), i), i%7) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("container %d: %v", i, err)
		}
	}
}

// sleeper starts a container that sleeps, and removes it when the test ends.
func sleeper(t *testing.T, ctx context.Context, client *containerd.Client, image containerd.Image, id string) (containerd.Container, containerd.Task) {
	t.Helper()
	container, err := client.NewContainer(ctx, id,
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
	})
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	})
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return container, task
}

func TestGoClientExec(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	container, task := sleeper(t, ctx, client, image, mark(t))
	spec, err := container.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for code := range 4 {
		var stdout output
		process := *spec.Process
		process.Args = []string{"sh", "-c", fmt.Sprintf("echo $((40+2)); exit %d", code)}
		exec, err := task.Exec(ctx, fmt.Sprintf("e%d", code), &process, cio.NewCreator(cio.WithStreams(nil, &stdout, nil)))
		if err != nil {
			t.Fatal(err)
		}
		exited, err := exec.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := exec.Start(ctx); err != nil {
			t.Fatal(err)
		}
		status := <-exited
		if int(status.ExitCode()) != code || status.Error() != nil {
			t.Fatalf("exec: code %d, %v", status.ExitCode(), status.Error())
		}
		if _, err := exec.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		if stdout.String() != "42\n" {
			t.Fatalf("exec printed %q", stdout.String())
		}
	}
	missing := *spec.Process
	missing.Args = []string{"/no/such/program"}
	exec, err := task.Exec(ctx, "missing", &missing, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Start(ctx); err == nil {
		t.Error("a program that is not there was started")
	}
	if _, err := exec.Delete(ctx); err != nil {
		t.Error(err)
	}
}

func TestGoClientPauseUpdatePids(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	_, task := sleeper(t, ctx, client, image, mark(t))
	for _, step := range []struct {
		name string
		do   func() error
		want containerd.ProcessStatus
	}{
		{"pause", func() error { return task.Pause(ctx) }, containerd.Paused},
		{"resume", func() error { return task.Resume(ctx) }, containerd.Running},
		{"update", func() error {
			limit := int64(64 << 20)
			return task.Update(ctx, containerd.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}))
		}, containerd.Running},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		status, err := task.Status(ctx)
		if err != nil || status.Status != step.want {
			t.Fatalf("after %s: %v, %v", step.name, status, err)
		}
	}
	pids, err := task.Pids(ctx)
	if err != nil || len(pids) != 1 || pids[0].Pid != task.Pid() {
		t.Fatalf("pids %v, %v; task has %d", pids, err, task.Pid())
	}
	metrics, err := task.Metrics(ctx)
	if err != nil || metrics.ID != mark(t) {
		t.Fatalf("metrics %v, %v", metrics, err)
	}
}

// TestGoClientDaemonKilled kills the daemon with -9 under a running container
// and lets the container end meanwhile.
func TestGoClientDaemonKilled(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	id := mark(t)
	container, task := sleeper(t, ctx, client, image, id)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(task.Pid()), syscall.SIGTERM); err != nil {
		t.Fatalf("the container's process is gone with the daemon: %v", err)
	}
	// init of a pid namespace has no default for SIGTERM: only SIGKILL ends it.
	if err := syscall.Kill(int(task.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	loaded, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := loaded.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case status := <-exited:
		if status.ExitCode() != 137 || status.Error() != nil {
			t.Fatalf("exit code %d, %v; want 137", status.ExitCode(), status.Error())
		}
	case <-time.After(time.Minute):
		t.Fatal("no exit status after a minute")
	}
}
