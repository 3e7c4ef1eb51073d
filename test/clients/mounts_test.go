package clients

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
)

// chain is the name of an image's top layer.
func chain(t *testing.T, ctx context.Context, image containerd.Image) string {
	t.Helper()
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return identity.ChainID(diffIDs).String()
}

// rooted keeps a snapshot that nothing refers to from collection.
var rooted = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "1"})

// layered are mounts that only the daemon can make: an overlay whose directories
// are made on the way, above what was mounted before.
func layered(t *testing.T, below []mount.Mount, dir string) []mount.Mount {
	t.Helper()
	return append(below, mount.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
		"X-containerd.mkdir.path=" + dir + "/upper:0755", "X-containerd.mkdir.path=" + dir + "/work:0711",
		fmt.Sprintf("lowerdir={{ mount %d }}", len(below)-1), "upperdir=" + dir + "/upper", "workdir=" + dir + "/work",
	}})
}

// TestGoClientMounts: containerd's mount manager is the daemon's.
func TestGoClientMounts(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	below, err := client.SnapshotService("").View(ctx, "below", chain(t, ctx, image), rooted)
	if err != nil {
		t.Fatal(err)
	}
	manager, dir := client.MountManager(), t.TempDir()
	if _, err := manager.Activate(ctx, "plain", below); !errdefs.IsNotImplemented(err) {
		t.Errorf("what the client can mount: %v", err)
	}
	info, err := manager.Activate(ctx, "a", layered(t, below, dir))
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := mount.All(info.System, target); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target + "/bin/sh"); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(target, 0); err != nil {
		t.Error(err)
	}
	if _, err := manager.Activate(ctx, "a", layered(t, below, dir)); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	if all, err := manager.List(ctx); err != nil || len(all) != 1 || all[0].Name != "a" || len(all[0].Active) != len(info.Active) {
		t.Errorf("%v, %v", all, err)
	}
	if err := manager.Deactivate(ctx, "a"); err != nil {
		t.Error(err)
	}
	if _, err := manager.Info(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if left, err := d.Mounts(); err != nil || len(left) > 0 {
		t.Errorf("mounted: %q, %v", left, err)
	}
	if err := client.SnapshotService("").Remove(ctx, "below"); err != nil {
		t.Error(err)
	}
}

// TestGoClientTaskMounts: a task on such mounts runs, outlives the daemon, and
// leaves nothing mounted.
func TestGoClientTaskMounts(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	below, err := client.SnapshotService("").View(ctx, "below", chain(t, ctx, image), rooted)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	container, err := client.NewContainer(ctx, mark(t), containerd.WithImage(image),
		containerd.WithNewSpec(oci.WithProcessArgs("/bin/sh", "-c", "echo x >/made; until [ -e /end ]; do sleep 0.05; done; exit 7")))
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.NewTask(ctx, cio.NullIO, containerd.WithRootFS(layered(t, below, dir)))
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if all, err := client.MountManager().List(ctx); err != nil || len(all) != 1 || all[0].Name != mark(t) {
		t.Errorf("%v, %v", all, err)
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	client, ctx = connect(t, d)
	if container, err = client.LoadContainer(ctx, mark(t)); err != nil {
		t.Fatal(err)
	}
	if task, err = container.Task(ctx, nil); err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("/proc", fmt.Sprint(task.Pid()), "root/end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if status := <-exited; status.ExitCode() != 7 {
		t.Errorf("exit code %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/upper/made"); err != nil {
		t.Error(err)
	}
	if left, err := d.Mounts(); err != nil || len(left) > 0 {
		t.Errorf("mounted: %q, %v", left, err)
	}
	if err := container.Delete(ctx); err != nil {
		t.Error(err)
	}
	if err := client.SnapshotService("").Remove(ctx, "below"); err != nil {
		t.Error(err)
	}
}

// TestGoClientManyLayers: what is answered for more layers than a page of mount
// options has room for can be mounted by containerd's code, and by our shim.
func TestGoClientManyLayers(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	ctx, done, err := client.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := done(ctx); err != nil {
			t.Error(err)
		}
	}()
	store, parent := client.SnapshotService(""), chain(t, ctx, image)
	const layers = 120
	for i := range layers {
		name := fmt.Sprintf("layer-%d", i)
		if _, err := store.Prepare(ctx, name+"-making", parent); err != nil {
			t.Fatal(err)
		}
		if err := store.Commit(ctx, name, name+"-making"); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	for key, make := range map[string]func() ([]mount.Mount, error){
		"view": func() ([]mount.Mount, error) { return store.View(ctx, "view", parent) },
		"work": func() ([]mount.Mount, error) { return store.Prepare(ctx, "work", parent) },
	} {
		mounts, err := make()
		if err != nil {
			t.Fatal(err)
		}
		if length := len(strings.Join(mounts[0].Options, ",")); length < os.Getpagesize() {
			t.Errorf("%s: the options have %d bytes, which tests nothing", key, length)
		}
		target := t.TempDir()
		if err := mount.All(mounts, target); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		if _, err := os.Stat(target + "/bin/sh"); err != nil {
			t.Error(err)
		}
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
	}
	container, err := client.NewContainer(ctx, mark(t), containerd.WithSnapshotter("overlayfs"), containerd.WithSnapshot("work"),
		containerd.WithNewSpec(oci.WithProcessArgs("/bin/sh", "-c", "exit 5")))
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if status := <-exited; status.ExitCode() != 5 {
		t.Errorf("exit code %d, %v", status.ExitCode(), status.Error())
	}
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
		t.Error(err)
	}
	if err := container.Delete(ctx); err != nil {
		t.Error(err)
	}
}
