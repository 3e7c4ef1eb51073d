package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/snapshots/native"
	"github.com/berthd/berth/snapshots/proxytest"
)

// TestProxySnapshotter: two lines of configuration make a program a snapshotter,
// and the daemon starts, serves and collects without it, too.
func TestProxySnapshotter(t *testing.T) {
	p := newPlace(t)
	driver, err := native.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	socket := filepath.Join(filepath.Dir(p.root), "far.sock")
	server := proxytest.Start(t, socket, driver)
	server.Die()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("[proxy_snapshotters.far]\naddress = '"+socket+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := p.start(t, "--config", file)
	r.out.await(t, "remote snapshotter not there", 0)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx = grpcmetadata.AppendToOutgoingContext(ctx, "containerd-namespace", "ns")

	plugins, err := introspectiongrpc.NewIntrospectionClient(r).Plugins(ctx, &introspection.PluginsRequest{Filters: []string{"id==far"}})
	if err != nil || len(plugins.GetPlugins()) != 1 || plugins.GetPlugins()[0].GetExports()["address"] != socket {
		t.Errorf("%v, %v", plugins, err)
	}
	snapshots := snapshotsgrpc.NewSnapshotsClient(r)
	began := time.Now()
	prepare := &api.PrepareSnapshotRequest{Snapshotter: "far", Key: "k", Labels: map[string]string{"a": "b"}}
	if _, err := snapshots.Prepare(ctx, prepare); status.Code(err) != codes.Unavailable || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	server.Revive()
	made, err := snapshots.Prepare(ctx, prepare)
	if err != nil || len(made.GetMounts()) != 1 {
		t.Fatalf("%v, %v", made, err)
	}
	if _, err := snapshots.Cleanup(ctx, &api.CleanupRequest{Snapshotter: "far"}); err != nil {
		t.Error(err)
	}
	if _, err := snapshots.Cleanup(ctx, &api.CleanupRequest{Snapshotter: "native"}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if keys := server.Keys(); len(keys) != 1 || !strings.HasPrefix(keys[0], "ns/") {
		t.Errorf("%q", keys)
	}
	for _, call := range server.Calls() {
		if !strings.HasSuffix(call, "[ns]") {
			t.Errorf("%s: the namespace is to be told once", call)
		}
	}
}
