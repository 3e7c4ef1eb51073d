package clients

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/test/harness"
)

// TestBadNames gives every kind of call names that are none.
func TestBadNames(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	for _, id := range []string{"", "a/b", "../x", ".", "..", "a b", "-a", "a\x00b", "ä", strings.Repeat("a", 77)} {
		_, err := client.ContainerService().Get(ctx, id)
		if !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			t.Errorf("get container %q: %v", id, err)
		}
		_, err = client.TaskService().Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: id})
		if err == nil {
			t.Errorf("a task of container %q was created", id)
		}
		_, err = client.NewContainer(ctx, id, containerd.WithNewSpec(oci.WithProcessArgs("true")))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("create container %q: %v", id, err)
		}
		other := namespaces.WithNamespace(context.Background(), id)
		if _, err := client.ImageService().List(other); id != "" && err == nil {
			t.Errorf("namespace %q was taken", id)
		}
	}
	raw := containersapi.NewContainersClient(client.Conn().(grpc.ClientConnInterface))
	if _, err := raw.Create(ctx, &containersapi.CreateContainerRequest{}); err == nil {
		t.Error("a container without anything was created")
	}
}

// TestBadContent writes blobs that are not what they were said to be.
func TestBadContent(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	ctx, done, err := client.WithLease(ctx, leases.WithExpiration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer done(ctx)
	store := client.ContentStore()
	other := digest.FromString("other")
	err = content.WriteBlob(ctx, store, "wrong-digest", strings.NewReader("hello"), ocispec.Descriptor{Size: 5, Digest: other})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("wrong digest: %v", err)
	}
	err = content.WriteBlob(ctx, store, "wrong-size", strings.NewReader("hello"), ocispec.Descriptor{Size: 3, Digest: digest.FromString("hello")})
	if err == nil {
		t.Error("a blob of another size was committed")
	}
	if _, err := store.Info(ctx, other); !errdefs.IsNotFound(err) {
		t.Errorf("info: %v", err)
	}
	for _, ref := range []string{"wrong-digest", "wrong-size"} {
		if err := store.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("abort %s: %v", ref, err)
		}
	}
}

// taskOf tries to create and start a task and gives the first error. Whatever
// was made is removed.
func taskOf(t *testing.T, ctx context.Context, client *containerd.Client, container containerd.Container, opts ...containerd.NewTaskOpts) error {
	t.Helper()
	task, err := container.NewTask(ctx, cio.NullIO, opts...)
	if err != nil {
		return err
	}
	err = task.Start(ctx)
	if _, deleteErr := task.Delete(ctx, containerd.WithProcessKill); deleteErr != nil {
		t.Errorf("delete: %v", deleteErr)
	}
	return err
}

// TestBadTasks creates tasks that can't be: a spec that is no JSON, a program
// that is not there, runtimes that are missing, fail and hang. Each gives an
// error that says so, and the id can be used again at once.
func TestBadTasks(t *testing.T) {
	d := start(t)
	client, ctx := connect(t, d)
	image := importImage(t, ctx, client)
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	runtime := func(path string) containerd.NewContainerOpts {
		return containerd.WithRuntime("io.containerd.runc.v2", &runcoptions.Options{BinaryName: path})
	}
	tests := map[string]struct {
		opts []containerd.NewContainerOpts
		spec *anypb.Any
		want string
	}{
		"spec is no JSON": {spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("not JSON")}, want: "invalid character"},
		"spec is empty":   {spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("{}")}, want: ""},
		"no such program": {opts: []containerd.NewContainerOpts{containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("/no/such/program"))}, want: "no such file"},
		"no such runtime": {opts: []containerd.NewContainerOpts{containerd.WithRuntime("io.containerd.nosuch.v9", nil)}, want: "nosuch"},
		"runtime missing": {opts: []containerd.NewContainerOpts{runtime(filepath.Join(dir, "missing"))}, want: "missing"},
		"runtime fails":   {opts: []containerd.NewContainerOpts{runtime(script("fails", "echo the moon is full >&2; exit 3\n"))}, want: "the moon is full"},
		"runtime lies":    {opts: []containerd.NewContainerOpts{runtime(script("lies", "exit 0\n"))}, want: "pid"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			id := fmt.Sprintf("%s-%d", "badtasks", os.Getpid())
			for range 2 { // the second time shows that the first left nothing
				opts := append([]containerd.NewContainerOpts{
					containerd.WithNewSnapshot(id, image),
					containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("true")),
				}, test.opts...)
				container, err := client.NewContainer(ctx, id, opts...)
				if err != nil {
					t.Fatal(err)
				}
				if test.spec != nil {
					raw := containersapi.NewContainersClient(client.Conn().(grpc.ClientConnInterface))
					got, err := raw.Get(ctx, &containersapi.GetContainerRequest{ID: id})
					if err != nil {
						t.Fatal(err)
					}
					got.Container.Spec = test.spec
					if _, err := raw.Update(ctx, &containersapi.UpdateContainerRequest{Container: got.Container}); err != nil {
						t.Fatal(err)
					}
				}
				if test.spec != nil {
					// The Go client reads the spec itself; the daemon has to find out too.
					_, err := client.TaskService().Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: id})
					if err == nil {
						t.Error("the daemon created a task of a bad spec")
					}
				}
				err = taskOf(t, ctx, client, container)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v does not name %q", err, test.want)
				}
				if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	for name, text := range map[string]string{
		"runtime hangs in create": "case \"$*\" in *' create '*) exec sleep 1000;; esac\nexec runc \"$@\"\n",
		"runtime hangs":           "exec sleep 1000\n",
	} {
		t.Run(name, func(t *testing.T) {
			container, err := client.NewContainer(ctx, mark(t), containerd.WithNewSnapshot(mark(t), image),
				containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("true")),
				runtime(script(strings.ReplaceAll(name, " ", "-"), text)))
			if err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			started := time.Now()
			if err := taskOf(t, short, client, container); err == nil {
				t.Error("a task was created by a runtime that hangs")
			}
			if took := time.Since(started); took > 30*time.Second {
				t.Errorf("the call ended after %v", took)
			}
			// Others are served meanwhile.
			if err := life(ctx, client, image, mark(t)+"-other", 0); err != nil {
				t.Error(err)
			}
			if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
				t.Error(err)
			}
			undone(t, d, mark(t))
		})
	}
}

// undone waits until nothing is left of a task whose Create failed. The caller
// was answered at its deadline; a runtime that hangs in delete too is given its
// time before the daemon goes on without it.
func undone(t *testing.T, d *harness.Daemon, id string) {
	t.Helper()
	bundle := filepath.Join(d.State, "io.containerd.runtime.v2.task", namespace, id)
	deadline := time.Now().Add(2 * time.Minute)
	for {
		if _, err := os.Lstat(bundle); errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", bundle)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
