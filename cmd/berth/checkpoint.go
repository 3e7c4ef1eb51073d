package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/names"
)

// Checkpoints are blobs that the container's record refers to by labels, which keeps
// them for as long as it is there.
const (
	checkpointLabel     = labels.GCRefContent + ".checkpoint."
	checkpointSpecLabel = labels.GCRefContent + ".checkpoint-spec."
)

// mediaTypeImages is that of a checkpoint's images.
const mediaTypeImages = "application/vnd.containerd.container.criu.checkpoint.criu.tar"

func (a *app) checkpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoint COMMAND",
		Short: "Write down what runs in containers, to let it go on later",
		Long: "Write down the processes of a container with their memory, by criu, and let them go on from there with\n" +
			"`berth start --checkpoint NAME CONTAINER`, or in a new container of the same image and flags with\n" +
			"`berth run -d --checkpoint CONTAINER/NAME`. Files are not written down: they have to be there as they were.\n" +
			"Checkpoints are kept with their container.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.checkpointCreateCommand(), a.checkpointListCommand(), a.checkpointRemoveCommand())
	return cmd
}

func (a *app) checkpointCreateCommand() *cobra.Command {
	var o client.CheckpointOptions
	cmd := &cobra.Command{
		Use:   "create [FLAGS] CONTAINER NAME",
		Short: "Write a checkpoint, and end what runs unless --leave-running is given",
		Args:  exactArgs(2, "container and name"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := names.Identifier(args[1]); err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.checkpoint(ctx, c, args[0], args[1], o)
			})
		},
		ValidArgsFunction: a.completeContainers(statusRunning),
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.LeaveRunning, "leave-running", false, "let it run on")
	flags.BoolVar(&o.OpenTCP, "tcp-established", false, "take established TCP connections along")
	flags.BoolVar(&o.FileLocks, "file-locks", false, "take locks on files along")
	flags.BoolVar(&o.UnixSockets, "ext-unix-sk", false, "take unix sockets along whose other side is outside")
	return cmd
}

func (a *app) checkpoint(ctx context.Context, c *client.Client, ref, name string, o client.CheckpointOptions) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	if _, taken := container.Record.GetLabels()[checkpointLabel+name]; taken {
		return hint(fmt.Errorf("checkpoint %q of container %q: %w", name, container.ID(), errdefs.ErrAlreadyExists),
			"choose another name, or remove it with `berth checkpoint rm %s %s`", container.ID(), name)
	}
	s, err := container.Spec()
	if err != nil {
		return err
	}
	o.Terminal = s.Process != nil && s.Process.Terminal
	leased, end, err := c.Lease(ctx, leaseTime)
	if err != nil {
		return err
	}
	images, spec, err := leased.Checkpoint(ctx, container.ID(), o)
	if err == nil {
		err = setLabels(c, container.ID(), map[string]string{
			checkpointLabel + name: images.GetDigest(), checkpointSpecLabel + name: spec.GetDigest(),
		})
	}
	if err = errors.Join(err, end()); err != nil {
		return err
	}
	fmt.Fprintln(a.out, name)
	return nil
}

// checkpointOf finds a checkpoint of a container by its name.
func checkpointOf(ctx context.Context, c *client.Client, container *client.Container, name string) (*types.Descriptor, error) {
	digest := container.Record.GetLabels()[checkpointLabel+name]
	if digest == "" {
		return nil, hint(fmt.Errorf("checkpoint %q of container %q: %w", name, container.ID(), errdefs.ErrNotFound),
			"`berth checkpoint ls %s` lists what there is", container.ID())
	}
	info, err := c.Content().Info(ctx, &content.InfoRequest{Digest: digest})
	if err != nil {
		return nil, fmt.Errorf("checkpoint %q of container %q: %w", name, container.ID(), err)
	}
	return &types.Descriptor{MediaType: mediaTypeImages, Digest: digest, Size: info.GetInfo().GetSize()}, nil
}

// namedCheckpoint finds a checkpoint as commands name it: CONTAINER/NAME, or NAME
// alone for one of own, which may be nil.
func namedCheckpoint(ctx context.Context, c *client.Client, own *client.Container, ref string) (*types.Descriptor, error) {
	id, name, other := strings.Cut(ref, "/")
	switch {
	case other:
		container, err := findContainer(ctx, c, id)
		if err != nil {
			return nil, err
		}
		return checkpointOf(ctx, c, container, name)
	case own == nil:
		return nil, usage(fmt.Errorf("checkpoint %q: of which container? As CONTAINER/NAME", ref))
	}
	return checkpointOf(ctx, c, own, ref)
}

// checkpointRow is a line of a list of checkpoints, and an element of its JSON.
type checkpointRow struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes
	Created time.Time `json:"created_at"`
}

func (a *app) checkpointListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "ls CONTAINER",
		Short:             "List the checkpoints of a container",
		Long:              "List the checkpoints of a container.\n\nJSON: a list of objects with name, digest, size, created_at.",
		Args:              exactArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.listCheckpoints(ctx, c, args[0]) })
		},
	}
}

func (a *app) listCheckpoints(ctx context.Context, c *client.Client, ref string) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	rows := []checkpointRow{}
	marks := container.Record.GetLabels()
	for _, key := range slices.Sorted(maps.Keys(marks)) {
		name, ok := strings.CutPrefix(key, checkpointLabel)
		if !ok {
			continue
		}
		info, err := c.Content().Info(ctx, &content.InfoRequest{Digest: marks[key]})
		if err != nil {
			return fmt.Errorf("checkpoint %q of container %q: %w", name, container.ID(), err)
		}
		rows = append(rows, checkpointRow{name, marks[key], info.GetInfo().GetSize(), info.GetInfo().GetCreatedAt().AsTime()})
	}
	if a.json() {
		return writeJSON(a.out, rows)
	}
	t := newTable(a.out, "NAME", "DIGEST", "SIZE", "CREATED")
	for _, r := range rows {
		t.row(r.Name, shortDigest(r.Digest), humanSize(r.Size), a.humanAge(r.Created))
	}
	return t.flush()
}

func (a *app) checkpointRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm CONTAINER NAME...",
		Short:             "Remove checkpoints of a container",
		Args:              minArgs(2, "container and name"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				container, err := findContainer(ctx, c, args[0])
				if err != nil {
					return err
				}
				for _, name := range args[1:] {
					if _, err := checkpointOf(ctx, c, container, name); err != nil {
						return err
					}
				}
				for _, name := range args[1:] {
					if err := setLabels(c, container.ID(), map[string]string{checkpointLabel + name: "", checkpointSpecLabel + name: ""}); err != nil {
						return err
					}
					fmt.Fprintln(a.out, name)
				}
				return nil
			})
		},
	}
}
