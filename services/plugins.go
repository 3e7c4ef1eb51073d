package services

import (
	"path/filepath"

	"github.com/containerd/platforms"

	api "github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/restart"
)

// Snapshotter is a snapshot driver as introspection tells of it.
type Snapshotter struct {
	Name         string
	Root         string // of its directories; "" for another program
	Address      string // socket of another program
	Capabilities []string
	Err          error // why it can't be used; nil if it can
}

// Layout is what clients want to know of the daemon's parts.
type Layout struct {
	Root         string // what outlives the machine's power
	Database     string // path of the database
	Content      string // directory of the content store
	Policy       string // "shared" or "isolated": whether namespaces share content
	OptPath      string // where programs installed from images go
	Snapshotters []Snapshotter
}

// Types and ids of plugins. They are names that clients look for; berth itself
// has no plugins.
const (
	typePrefix    = "io.containerd."
	runtimeType   = typePrefix + "runtime.v2"
	runtimePlugin = runtimeType + "/task"
	grpcType      = typePrefix + "grpc.v1"
)

// plugins lists the parts of the daemon under the names that clients look for,
// also those that are not in use, with the reason.
func plugins(l Layout) []*api.Plugin {
	own := platforms.DefaultSpec()
	platform := []*types.Platform{{Os: own.OS, Architecture: own.Architecture, Variant: own.Variant}}
	list := []*api.Plugin{
		{Type: runtimeType, Id: "task", Platforms: platform, Exports: map[string]string{"log-uri-schemes": "fifo,file"}},
		{Type: typePrefix + "content.v1", Id: "content", Exports: map[string]string{"root": l.Content}},
		{Type: typePrefix + "metadata.v1", Id: "bolt", Exports: map[string]string{"policy": l.Policy, "path": l.Database}},
		{Type: typePrefix + "differ.v1", Id: "walking", Platforms: platform},
		{Type: typePrefix + "gc.v1", Id: "scheduler"},
		{Type: typePrefix + "event.v1", Id: "exchange"},
		{Type: typePrefix + "lease.v1", Id: "manager"},
		{Type: typePrefix + "shim.v1", Id: "manager"},
		{Type: typePrefix + "sandbox.store.v1", Id: "local"},
		{Type: typePrefix + "sandbox.controller.v1", Id: sandboxer},
		{Type: typePrefix + "monitor.container.v1", Id: "restart", Capabilities: []string{restart.No, restart.Always, restart.OnFailure, restart.UnlessStopped}},
		{Type: typePrefix + "mount-manager.v1", Id: "bolt"},
		{Type: typePrefix + "streaming.v1", Id: "manager"},
		{Type: typePrefix + "transfer.v1", Id: "local"},
		{Type: typePrefix + "internal.v1", Id: "opt", Exports: map[string]string{"path": l.OptPath}},
	}
	for _, s := range l.Snapshotters {
		exports := map[string]string{"root": s.Root}
		if s.Address != "" {
			exports = map[string]string{"address": s.Address}
		}
		list = append(list, initErr(&api.Plugin{
			Type: typePrefix + "snapshotter.v1", Id: s.Name, Platforms: platform,
			Capabilities: s.Capabilities, Exports: exports,
		}, s.Err))
	}
	for _, id := range []string{
		"containers", "content", "diff", "events", "healthcheck", "images", "introspection", "leases",
		"mounts", "namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks", "transfer", "version",
	} {
		list = append(list, &api.Plugin{Type: grpcType, Id: id})
	}
	return list
}

// OptPath is where programs installed from images go under root.
func OptPath(root string) string { return filepath.Join(root, "opt") }
