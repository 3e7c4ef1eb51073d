package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// diskUsage is the JSON of df.
type diskUsage struct {
	Places  []diskPlace  `json:"places"`
	Owners  []diskOwner  `json:"owners"`
	Objects []diskObject `json:"objects,omitempty"` // with --verbose
}

type diskPlace struct {
	Name    string `json:"name"` // content, ingests, snapshots/SNAPSHOTTER, logs, database
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`
	Garbage int64  `json:"garbage_bytes"` // that nothing keeps
	Unused  int64  `json:"unused_bytes"`  // that only images without a container keep
}

type diskOwner struct {
	Kind       string `json:"kind"` // image, container, lease, ingest, blob, snapshot
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Bytes      int64  `json:"bytes"`
	Unique     int64  `json:"unique_bytes"` // that nothing else keeps
	Objects    int64  `json:"objects"`
	Containers int64  `json:"containers"` // of an image: how many stand on it
}

type diskObject struct {
	Kind        string   `json:"kind"` // blob, ingest, snapshot, log
	Namespaces  []string `json:"namespaces"`
	Name        string   `json:"name"`
	Snapshotter string   `json:"snapshotter,omitempty"`
	Bytes       int64    `json:"bytes"`
	Owners      int64    `json:"owners"`
	OwnedBy     []string `json:"owned_by"` // some of them
}

func (a *app) dfCommand() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "df [-v]",
		Short: "Tell who owns the bytes on disk",
		Long: "Tell, of all namespaces, what is on disk where, and which images, containers, leases and other roots keep it. UNIQUE\n" +
			"is what nothing else keeps: as much as its removal frees. GARBAGE goes with the next collection; UNUSED would go with\n" +
			"`berth prune --images`.\n\n" +
			"JSON: an object with places (name, objects, bytes, garbage_bytes, unused_bytes), owners (kind, namespace, name,\n" +
			"bytes, unique_bytes, objects, containers), with -v objects (kind, namespaces, name, snapshotter, bytes, owners,\n" +
			"owned_by).",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.df(ctx, c, verbose) })
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "every object, and who keeps it")
	return cmd
}

func (a *app) df(ctx context.Context, c *client.Client, verbose bool) error {
	stream, err := c.Maintenance().Usage(ctx, &maintenance.UsageRequest{Objects: verbose})
	if err != nil {
		return fmt.Errorf("measure the store: %w", err)
	}
	u := diskUsage{Places: []diskPlace{}, Owners: []diskOwner{}}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("measure the store: %w", err)
		}
		switch part := r.GetPart().(type) {
		case *maintenance.UsageResponse_Place:
			p := part.Place
			u.Places = append(u.Places, diskPlace{p.GetName(), p.GetObjects(), p.GetBytes(), p.GetGarbageBytes(), p.GetUnusedBytes()})
		case *maintenance.UsageResponse_Owner:
			o := part.Owner
			u.Owners = append(u.Owners, diskOwner{o.GetKind(), o.GetNamespace(), o.GetName(), o.GetBytes(), o.GetUniqueBytes(), o.GetObjects(), o.GetContainers()})
		case *maintenance.UsageResponse_Object:
			o := part.Object
			u.Objects = append(u.Objects, diskObject{o.GetKind(), o.GetNamespaces(), o.GetName(), o.GetSnapshotter(), o.GetBytes(), o.GetOwners(), o.GetOwnedBy()})
		}
	}
	if a.json() {
		return writeJSON(a.out, u)
	}
	return a.dfTables(u)
}

func (a *app) dfTables(u diskUsage) error {
	t := newTable(a.out, "PLACE", "OBJECTS", "SIZE", "GARBAGE", "UNUSED")
	for _, p := range u.Places {
		t.row(p.Name, fmt.Sprint(p.Objects), humanSize(p.Bytes), humanSize(p.Garbage), humanSize(p.Unused))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(u.Owners) > 0 {
		fmt.Fprintln(a.out)
		t = newTable(a.out, "OWNER", "NAMESPACE", "NAME", "SIZE", "UNIQUE", "CONTAINERS")
		for _, o := range u.Owners {
			containers := "-"
			name := o.Name
			if o.Kind == "image" {
				containers, name = fmt.Sprint(o.Containers), familiar(o.Name)
			}
			t.row(o.Kind, o.Namespace, name, humanSize(o.Bytes), humanSize(o.Unique), containers)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(u.Objects) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	t = newTable(a.out, "OBJECT", "NAME", "SIZE", "KEPT BY")
	for _, o := range u.Objects {
		kind, by := o.Kind, strings.Join(o.OwnedBy, ", ")
		if o.Snapshotter != "" {
			kind += "/" + o.Snapshotter
		}
		switch more := o.Owners - int64(len(o.OwnedBy)); {
		case o.Owners == 0:
			by = "nothing"
		case more > 0:
			by += fmt.Sprintf(", and %d more", more)
		}
		t.row(kind, o.Name, humanSize(o.Bytes), by)
	}
	return t.flush()
}
