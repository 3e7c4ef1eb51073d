package services

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
)

func TestServerInfo(t *testing.T) {
	d := start(t)
	r, err := introspectiongrpc.NewIntrospectionClient(d).Server(t.Context(), &emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &ns); err != nil {
		t.Fatal(err)
	}
	if r.GetUuid() != "11111111-2222-4333-8444-555555555555" || r.GetPid() != uint64(os.Getpid()) || r.GetPidns() != ns.Ino || len(r.GetDeprecations()) > 0 {
		t.Errorf("got %v", r)
	}
}

// What each known client looks for is there (section 3.3 of the contract).
func TestPluginsThatClientsLookFor(t *testing.T) {
	d := start(t)
	c := introspectiongrpc.NewIntrospectionClient(d)
	list := func(filters ...string) []*api.Plugin {
		t.Helper()
		r, err := c.Plugins(t.Context(), &api.PluginsRequest{Filters: filters})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetPlugins()
	}
	if p := list("type==io.containerd.snapshotter.v1, id==native"); len(p) != 1 || p[0].GetInitErr() != nil || len(p[0].GetPlatforms()) != 1 || p[0].GetExports()["root"] == "" {
		t.Errorf("client library, snapshotter: %v", p)
	}
	if p := list("id==opt"); len(p) != 1 || p[0].GetExports()["path"] != d.root+"/opt" {
		t.Errorf("ctr install: %v", p)
	}
	if p := list("id==restart"); len(p) != 1 || p[0].GetType() != "io.containerd.monitor.container.v1" ||
		strings.Join(p[0].GetCapabilities(), " ") != "no always on-failure unless-stopped" {
		t.Errorf("nerdctl, restart policies: %v", p)
	}
	if p := list("type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2"); len(p) != 1 || len(p[0].GetPlatforms()) != 1 || p[0].GetPlatforms()[0].GetOs() != "linux" {
		t.Errorf("buildkitd: %v", p)
	}
	p := list("id==overlayfs")
	if len(p) != 1 || codes.Code(p[0].GetInitErr().GetCode()) != codes.FailedPrecondition || !strings.Contains(p[0].GetInitErr().GetMessage(), "no overlay here") {
		t.Errorf("a snapshotter that failed: %v", p)
	}
	var names []string
	for _, p := range list() {
		names = append(names, strings.TrimPrefix(p.GetType(), "io.containerd.")+"/"+p.GetId())
		if codes.Code(p.GetInitErr().GetCode()) == codes.Unimplemented {
			t.Errorf("%s/%s: init_err %v", p.GetType(), p.GetId(), p.GetInitErr())
		}
	}
	for _, want := range strings.Fields(`runtime.v2/task content.v1/content metadata.v1/bolt differ.v1/walking gc.v1/scheduler
		event.v1/exchange lease.v1/manager streaming.v1/manager transfer.v1/local sandbox.store.v1/local
		sandbox.controller.v1/shim shim.v1/manager mount-manager.v1/bolt internal.v1/opt grpc.v1/containers grpc.v1/content
		grpc.v1/diff grpc.v1/events grpc.v1/healthcheck grpc.v1/images grpc.v1/introspection grpc.v1/leases grpc.v1/mounts
		grpc.v1/namespaces grpc.v1/sandbox-controllers grpc.v1/sandboxes grpc.v1/snapshots grpc.v1/streaming grpc.v1/tasks
		grpc.v1/transfer grpc.v1/version`) {
		if !slices.Contains(names, want) {
			t.Errorf("plugin %s is missing", want)
		}
	}
	if _, err := c.Plugins(t.Context(), &api.PluginsRequest{Filters: []string{"bad=="}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("bad filter: %v", err)
	}
}

func TestPluginInfo(t *testing.T) {
	d := start(t)
	c := introspectiongrpc.NewIntrospectionClient(d)
	request, err := protobuf.MarshalAny(&types.RuntimeRequest{RuntimePath: "io.containerd.runc.v2"})
	if err != nil {
		t.Fatal(err)
	}
	prefixed := &anypb.Any{TypeUrl: "type.googleapis.com/" + request.GetTypeUrl(), Value: request.GetValue()}
	const runtime, snapshotter = "io.containerd.runtime.v2", "io.containerd.snapshotter.v1"
	for _, x := range []struct {
		kind, id string
		options  *anypb.Any
		want     codes.Code
		extra    bool
	}{
		{runtime, "task", nil, codes.OK, false},
		{runtime, "task", request, codes.OK, true},
		{runtime, "task", prefixed, codes.OK, true},
		{runtime, "task", &anypb.Any{TypeUrl: "what.Ever"}, codes.InvalidArgument, false},
		{runtime, "task", &anypb.Any{TypeUrl: request.GetTypeUrl(), Value: []byte{0xff}}, codes.InvalidArgument, false},
		{runtime, "nope", nil, codes.NotFound, false},
		{"", "", nil, codes.NotFound, false},
		{snapshotter, "overlayfs", nil, codes.OK, false},
		{snapshotter, "overlayfs", request, codes.FailedPrecondition, false},
		{snapshotter, "native", request, codes.Unimplemented, false},
	} {
		r, err := c.PluginInfo(t.Context(), &api.PluginInfoRequest{Type: x.kind, Id: x.id, Options: x.options})
		if status.Code(err) != x.want || (r.GetExtra() != nil) != x.extra {
			t.Errorf("%s/%s with %v: %v, error %v", x.kind, x.id, x.options, r, err)
		}
		if x.extra {
			if url := r.GetExtra().GetTypeUrl(); url != "containerd.types.RuntimeInfo" {
				t.Errorf("the extra's type URL is %q", url)
			}
			if m, err := protobuf.UnmarshalAny(r.GetExtra()); err != nil || m.(*types.RuntimeInfo).GetName() != "io.containerd.runc.v2" {
				t.Errorf("extra %v, error %v", m, err)
			}
		}
	}
}
