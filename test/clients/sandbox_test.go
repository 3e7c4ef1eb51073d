package clients

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/test/harness"
)

// copiedShim is a runtime name by which berthd finds a copy of berth-shim, which it
// takes for another project's shim: one that serves sandboxes, with real containers.
const copiedShim = "io.berth.copy.v2"

// TestGoClientSandbox leads sandboxes through their lives with containerd's Go client,
// under berth's shim and under one that the daemon does not know: a container by the
// sandbox of its record, another by the address that the controller tells, over a
// daemon that is killed.
func TestGoClientSandbox(t *testing.T) {
	d := start(t)
	bin := filepath.Join(d.Dir, "bin")
	shim, err := os.ReadFile(programs.Path("berth-shim"))
	if err := errors.Join(err, d.Stop(), os.Mkdir(bin, 0o755), os.WriteFile(filepath.Join(bin, "containerd-shim-copy-v2"), shim, 0o755)); err != nil {
		t.Fatal(err)
	}
	d.Env = append(d.Env, "PATH="+bin+":"+os.Getenv("PATH"))
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	for name, runtime := range map[string]string{"own": "io.containerd.runc.v2", "copy": copiedShim} {
		t.Run(name, func(t *testing.T) { sandboxLife(ctx, t, d, client, image, runtime) })
	}
	if _, err := client.NewSandbox(ctx, "none", containerd.WithSandboxRuntime("io.berth.missing.v1", nil), containerd.WithSandboxSpec(&oci.Spec{})); err == nil || !strings.Contains(err.Error(), "is not installed") {
		t.Errorf("a shim that is not there: %v", err)
	}
	if err := client.SandboxStore().Delete(ctx, "none"); err != nil { // which the client leaves
		t.Error(err)
	}
}

func sandboxLife(ctx context.Context, t *testing.T, d *harness.Daemon, client *containerd.Client, image containerd.Image, runtime string) {
	m := mark(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	box, err := client.NewSandbox(ctx, m+"-box", containerd.WithSandboxRuntime(runtime, nil), containerd.WithSandboxSpec(&oci.Spec{}))
	must(err)
	must(box.Start(ctx))
	controller := client.SandboxController("shim")
	state, err := controller.Status(ctx, box.ID(), true)
	must(err)
	if state.State != "SANDBOX_READY" || !strings.HasPrefix(state.Address, "ttrpc+unix:///") || state.Version != 3 {
		t.Fatalf("%+v", state)
	}
	ended, err := box.Wait(ctx)
	must(err)
	options := func(id string) []containerd.NewContainerOpts {
		return []containerd.NewContainerOpts{
			containerd.WithNewSnapshot(id, image), containerd.WithRuntime(runtime, nil),
			containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sh", "-c", termScript)),
		}
	}
	a, err := box.NewContainer(ctx, m+"-a", options(m+"-a")...)
	must(err)
	b, err := client.NewContainer(ctx, m+"-b", options(m+"-b")...)
	must(err)
	for c, opts := range map[containerd.Container][]containerd.NewTaskOpts{a: nil, b: {containerd.WithTaskAPIEndpoint(state.Address, state.Version)}} {
		task, err := c.NewTask(ctx, cio.NullIO, opts...)
		must(err)
		must(task.Start(ctx))
	}
	f := foreign{ctr{t: t, daemon: d}, ""}
	if one, two := f.recorded(m+"-a", "shim.json"), f.recorded(m+"-b", "shim.json"); one != two || uint32(one) != state.Pid {
		t.Errorf("shims %d and %d, the sandbox is process %d", one, two, state.Pid)
	}
	must(d.Kill())
	must(d.Start())
	for _, c := range []containerd.Container{a, b} {
		task, err := c.Task(ctx, nil)
		must(err)
		exited, err := task.Wait(ctx)
		must(err)
		must(task.Kill(ctx, syscall.SIGKILL))
		if status := <-exited; status.Error() != nil || status.ExitCode() != 137 {
			t.Errorf("%s: exit code %d, %v", c.ID(), status.ExitCode(), status.Error())
		}
		_, err = task.Delete(ctx)
		must(err)
		must(c.Delete(ctx, containerd.WithSnapshotCleanup))
	}
	state, err = controller.Status(ctx, box.ID(), false)
	must(err)
	if state.State != "SANDBOX_READY" {
		t.Errorf("without containers it is %s", state.State)
	}
	must(box.Stop(ctx))
	// The client has asked the next daemon by itself.
	if status := <-ended; status.Error() != nil {
		t.Errorf("the sandbox's end: %v", status.Error())
	}
	must(box.Shutdown(ctx))
	if _, err := client.LoadSandbox(ctx, box.ID()); !errdefs.IsNotFound(err) {
		t.Errorf("after its shutdown: %v", err)
	}
	gone := filepath.Join(d.State, "io.containerd.sandbox.controller.v1.shim", namespace, box.ID())
	if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its bundle: %v", err)
	}
}
