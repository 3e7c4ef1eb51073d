package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/client"
)

// daemonInfo is the JSON of info.
type daemonInfo struct {
	Address      string   `json:"address"`
	Version      string   `json:"version"`     // the daemon's own; empty: it is not berthd
	API          string   `json:"api_version"` // level of containerd's API that it speaks
	Revision     string   `json:"revision"`
	UUID         string   `json:"uuid"`
	PID          uint64   `json:"daemon_pid"`
	Namespace    string   `json:"namespace"`
	Namespaces   []string `json:"namespaces"`
	Containers   int      `json:"containers"` // of the namespace, as the next two
	Running      int      `json:"running"`
	Images       int      `json:"images"`
	Snapshotters []string `json:"snapshotters"` // those that work
	Broken       []broken `json:"broken"`       // parts of the daemon that do not
}

// broken is a part of the daemon that failed to start.
type broken struct {
	Part  string `json:"part"`
	Error string `json:"error"`
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Tell about the daemon",
		Long: "Tell about the daemon and what is in the namespace.\n\n" +
			"JSON: an object with address, version, api_version, revision, uuid, daemon_pid, namespace, namespaces,\n" +
			"containers, running, images, snapshotters, broken.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				info, err := readInfo(ctx, c)
				if err != nil {
					return err
				}
				if a.json() {
					return writeJSON(a.out, info)
				}
				return a.infoTable(info)
			})
		},
	}
}

func readInfo(ctx context.Context, c *client.Client) (*daemonInfo, error) {
	v, err := c.Version().Version(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, fmt.Errorf("version: %w", err)
	}
	server, err := c.Introspection().Server(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	own, api := ownVersion(v.GetVersion())
	info := &daemonInfo{
		Address: c.Address(), Version: own, API: api, Revision: v.GetRevision(),
		UUID: server.GetUuid(), PID: server.GetPid(), Namespace: c.Namespace(),
		Namespaces: []string{}, Snapshotters: []string{}, Broken: []broken{},
	}
	plugins, err := c.Introspection().Plugins(ctx, &introspection.PluginsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the daemon's parts: %w", err)
	}
	for _, plugin := range plugins.GetPlugins() {
		failure := plugin.GetInitErr()
		if failure == nil && plugin.GetType() == "io.containerd.snapshotter.v1" {
			info.Snapshotters = append(info.Snapshotters, plugin.GetId())
		}
		if failure != nil && failure.GetCode() != int32(codes.Unimplemented) { // left out is not broken
			info.Broken = append(info.Broken, broken{Part: plugin.GetType() + "/" + plugin.GetId(), Error: failure.GetMessage()})
		}
	}
	return info, count(ctx, c, info)
}

// count fills in what there is.
func count(ctx context.Context, c *client.Client, info *daemonInfo) error {
	spaces, err := c.Namespaces().List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range spaces.GetNamespaces() {
		info.Namespaces = append(info.Namespaces, ns.GetName())
	}
	states, err := containerStates(ctx, c)
	if err != nil {
		return err
	}
	info.Containers = len(states)
	for _, s := range states {
		if s.Status == statusRunning {
			info.Running++
		}
	}
	list, err := c.Images().List(ctx, &images.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	info.Images = len(list.GetImages())
	return nil
}

func (a *app) infoTable(info *daemonInfo) error {
	lines := [][2]string{
		{"address", info.Address},
		{"version", info.Version},
		{"containerd API", info.API},
		{"revision", info.Revision},
		{"uuid", info.UUID},
		{"daemon pid", fmt.Sprint(info.PID)},
		{"namespace", info.Namespace},
		{"all namespaces", strings.Join(info.Namespaces, ", ")},
		{"containers", fmt.Sprintf("%d, of which %d run", info.Containers, info.Running)},
		{"images", fmt.Sprint(info.Images)},
		{"snapshotters", strings.Join(info.Snapshotters, ", ")},
	}
	for _, line := range lines {
		fmt.Fprintf(a.out, "%-16s%s\n", line[0]+":", or(line[1], "-"))
	}
	for _, b := range info.Broken {
		fmt.Fprintf(a.out, "%-16s%s: %s\n", "broken:", b.Part, b.Error)
	}
	return nil
}
