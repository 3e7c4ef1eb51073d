package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
)

func TestShimNames(t *testing.T) {
	data, err := os.ReadFile("testdata/shim-names.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Runtimes []struct{ Runtime, Binary string }
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Runtimes) < 10 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Runtimes {
		if got := shimBinary(v.Runtime); got != v.Binary {
			t.Errorf("%q: %q, want %q", v.Runtime, got, v.Binary)
		}
	}
}

// TestResolve tells our own shim from those of others, and from none.
func TestResolve(t *testing.T) {
	dir := t.TempDir()
	own, link := filepath.Join(dir, "berth-shim"), filepath.Join(dir, "link")
	foreign := filepath.Join(dir, "containerd-shim-other-v2")
	for _, path := range []string{own, foreign} {
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(own, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	table := &Tasks{cfg: Config{Shim: own}}
	for runtime, want := range map[string]string{
		RuntimeRunc: own, RuntimeBerth: own, own: own, link: own,
		"io.containerd.other.v2": foreign, foreign: foreign,
	} {
		for range 2 { // the second time from memory
			if got, err := table.resolve(runtime); got != want || err != nil {
				t.Errorf("%q: %q, %v, want %q", runtime, got, err, want)
			}
		}
	}
	for runtime, want := range map[string]string{
		"io.containerd.nosuch.v9":            "its shim containerd-shim-nosuch-v9 is not installed: not in PATH, nor next to the daemon",
		"rel/path":                           "neither a runtime name nor an absolute path",
		"runc":                               "not a runtime name, such as io.containerd.runc.v2",
		"":                                   "not a runtime name, such as io.containerd.runc.v2",
		filepath.Join(dir, "does-not-exist"): "no such file or directory",
		dir:                                  "not a program that can be run",
	} {
		_, err := table.resolve(runtime)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: %v, want %q", runtime, err, want)
		}
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // the code on the wire is Unknown
			t.Errorf("%q: kind of %v", runtime, err)
		}
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := table.resolve("io.containerd.other.v2"); err == nil {
		t.Error("a shim that was removed is still found")
	}
}

func TestPlan(t *testing.T) {
	table := &Tasks{cfg: Config{Shim: "/shim"}, bundles: "/bundles"}
	container := func(change func(*containers.Container)) *containers.Container {
		c := containerOf("a", script{})
		if change != nil {
			change(c)
		}
		return c
	}
	good, other := packed(t, &runc.Options{BinaryName: "crun", ShimCgroup: "/x"}), packed(t, &runc.Options{Root: "/r"})
	prefixed := &anypb.Any{TypeUrl: "type.googleapis.com/" + good.TypeUrl, Value: good.Value}
	foreign := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte("x")}
	runtimeOf := func(o *anypb.Any) func(*containers.Container) {
		return func(c *containers.Container) { c.Runtime.Options = o }
	}
	for name, c := range map[string]struct {
		container *containers.Container
		request   *tasks.CreateTaskRequest
		options   *anypb.Any
		want      string
	}{
		"plain":                    {container(nil), &tasks.CreateTaskRequest{}, nil, ""},
		"task options":             {container(nil), &tasks.CreateTaskRequest{Options: good}, good, ""},
		"with a prefix":            {container(nil), &tasks.CreateTaskRequest{Options: prefixed}, good, ""},
		"container's options":      {container(runtimeOf(other)), &tasks.CreateTaskRequest{}, other, ""},
		"the task's come first":    {container(runtimeOf(other)), &tasks.CreateTaskRequest{Options: good}, good, ""},
		"empty ones don't count":   {container(runtimeOf(other)), &tasks.CreateTaskRequest{Options: &anypb.Any{TypeUrl: good.TypeUrl}}, other, ""},
		"wrong type":               {container(nil), &tasks.CreateTaskRequest{Options: foreign}, nil, "this runtime takes containerd.runc.v1.Options"},
		"wrong type, empty":        {container(nil), &tasks.CreateTaskRequest{Options: &anypb.Any{TypeUrl: "x.Y"}}, nil, "this runtime takes containerd.runc.v1.Options"},
		"wrong type in container":  {container(runtimeOf(foreign)), &tasks.CreateTaskRequest{}, nil, "this runtime takes containerd.runc.v1.Options"},
		"garbage":                  {container(nil), &tasks.CreateTaskRequest{Options: &anypb.Any{TypeUrl: good.TypeUrl, Value: []byte{255}}}, nil, "not a containerd.runc.v1.Options"},
		"checkpoint":               {container(nil), &tasks.CreateTaskRequest{Checkpoint: &types.Descriptor{}}, nil, "it has to be application/vnd.containerd.container.criu.checkpoint.criu.tar"},
		"relative checkpoint":      {container(nil), &tasks.CreateTaskRequest{Options: packed(t, &runc.Options{CriuImagePath: "x"})}, nil, "not an absolute path"},
		"sandbox":                  {container(nil), &tasks.CreateTaskRequest{TaskApiAddress: "x"}, nil, "no address such as ttrpc+unix"},
		"sandbox, old spelling":    {container(nil), &tasks.CreateTaskRequest{Options: packed(t, &runc.Options{TaskApiAddress: "x"})}, nil, "no address such as ttrpc+unix"},
		"no spec":                  {container(func(c *containers.Container) { c.Spec = nil }), &tasks.CreateTaskRequest{}, nil, "no spec: invalid argument"},
		"another container's row":  {container(func(c *containers.Container) { c.Id = "b" }), &tasks.CreateTaskRequest{}, nil, "invalid argument"},
		"runtime that is not here": {container(nil), &tasks.CreateTaskRequest{RuntimePath: "/no/such"}, nil, "no such file"},
	} {
		c.request.ContainerId = "a"
		p, err := table.plan(testNS, c.container, c.request)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := p.request.Options; got.GetTypeUrl() != c.options.GetTypeUrl() || string(got.GetValue()) != string(c.options.GetValue()) {
			t.Errorf("%s: options %v", name, got)
		}
		if p.request.Bundle != "/bundles/test/a" || string(p.config) != string(c.container.Spec.Value) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
