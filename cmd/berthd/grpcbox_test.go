package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/types"
)

// boxShimPath makes the shim's program: a script that runs this test binary.
func boxShimPath(t *testing.T, p *place) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(p.root)
	path := filepath.Join(dir, "containerd-shim-box-v1")
	text := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", asBoxShim, dir, self)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSandboxOverGRPC leads a sandbox whose shim speaks gRPC through its life, with
// a container that joins it by its address, over a daemon that is killed.
func TestSandboxOverGRPC(t *testing.T) {
	p := newPlace(t)
	shim := boxShimPath(t, p)
	r := p.start(t)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "ns"), patience)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v; berthd said: %s", err, r.out)
		}
	}
	_, err := namespacesgrpc.NewNamespacesClient(r).Create(ctx, &namespaces.CreateNamespaceRequest{Namespace: &namespaces.Namespace{Name: "ns"}})
	must(err)
	boxes := sandboxgrpc.NewControllerClient(r)
	_, err = boxes.Create(ctx, &sandbox.ControllerCreateRequest{
		SandboxId: "p", Sandboxer: "shim", Sandbox: &types.Sandbox{SandboxId: "p", Runtime: &types.Sandbox_Runtime{Name: shim}},
	})
	must(err)
	started, err := boxes.Start(ctx, &sandbox.ControllerStartRequest{SandboxId: "p", Sandboxer: "shim"})
	must(err)
	if !strings.HasPrefix(started.GetAddress(), "grpc+unix:///") || started.GetVersion() != 3 {
		t.Fatalf("%v", started)
	}
	_, err = containersgrpc.NewContainersClient(r).Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "a", Sandbox: "p", Runtime: &containers.Container_Runtime{Name: shim}, Spec: &anypb.Any{TypeUrl: "spec", Value: []byte(`{"ociVersion":"1.0.2"}`)},
	}})
	must(err)
	made, err := tasksgrpc.NewTasksClient(r).Create(ctx, &tasks.CreateTaskRequest{
		ContainerId: "a", TaskApiAddress: started.GetAddress(), TaskApiVersion: started.GetVersion(),
	})
	must(err)
	_, err = tasksgrpc.NewTasksClient(r).Start(ctx, &tasks.StartRequest{ContainerId: "a"})
	must(err)
	if err := r.stop(syscall.SIGKILL); err == nil {
		t.Fatal("it survived SIGKILL")
	}

	r = p.start(t)
	boxes = sandboxgrpc.NewControllerClient(r)
	calls := tasksgrpc.NewTasksClient(r)
	got, err := calls.Get(ctx, &tasks.GetRequest{ContainerId: "a"})
	must(err)
	if got.GetProcess().GetStatus().String() != "RUNNING" || got.GetProcess().GetPid() != made.GetPid() {
		t.Errorf("%v, made as process %d", got, made.GetPid())
	}
	state, err := boxes.Status(ctx, &sandbox.ControllerStatusRequest{SandboxId: "p", Sandboxer: "shim"})
	must(err)
	if state.GetState() != "SANDBOX_READY" || state.GetAddress() != started.GetAddress() {
		t.Errorf("%v", state)
	}
	_, err = calls.Kill(ctx, &tasks.KillRequest{ContainerId: "a", Signal: uint32(syscall.SIGTERM)})
	must(err)
	exit, err := calls.Wait(ctx, &tasks.WaitRequest{ContainerId: "a"})
	must(err)
	if exit.GetExitStatus() != 128+uint32(syscall.SIGTERM) {
		t.Errorf("%v", exit)
	}
	_, err = calls.Delete(ctx, &tasks.DeleteTaskRequest{ContainerId: "a"})
	must(err)
	_, err = boxes.Stop(ctx, &sandbox.ControllerStopRequest{SandboxId: "p", Sandboxer: "shim"})
	must(err)
	_, err = boxes.Wait(ctx, &sandbox.ControllerWaitRequest{SandboxId: "p", Sandboxer: "shim"})
	must(err)
	_, err = boxes.Shutdown(ctx, &sandbox.ControllerShutdownRequest{SandboxId: "p", Sandboxer: "shim"})
	must(err)
	if _, err := os.Lstat(filepath.Join(p.state, "io.containerd.sandbox.controller.v1.shim", "ns", "p")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sandbox's bundle: %v", err)
	}
}
