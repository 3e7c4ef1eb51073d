package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// prunedThing is what went, or would go, as JSON has it.
type prunedThing struct {
	Kind        string `json:"kind"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	Snapshotter string `json:"snapshotter,omitempty"`
	Bytes       int64  `json:"bytes"`
	Failed      string `json:"failed,omitempty"`
}

// pruneFlags say what may go.
type pruneFlags struct {
	containers, images, all, dryRun, everywhere bool
	older                                       time.Duration
}

const pruneOlder = time.Minute

func (a *app) pruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune [--containers] [--images] [--all] [--dry-run]",
		Short: "Remove what nobody uses",
		Long: "Remove what nothing keeps, and by request containers that do not run and images that no container is left of, with\n" +
			"all that only they kept. Containers with a restart policy and those of sandboxes stay. --dry-run only tells.\n\n" +
			"JSON: a list of objects with kind, namespace, name, snapshotter, bytes, failed.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.prune(ctx, c, f) })
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.containers, "containers", false, "containers that do not run")
	flags.BoolVar(&f.images, "images", false, "images that no container is left of")
	flags.BoolVarP(&f.all, "all", "a", false, "both of these")
	flags.BoolVarP(&f.dryRun, "dry-run", "d", false, "tell what would go, and remove nothing")
	flags.BoolVarP(&f.everywhere, "all-namespaces", "A", false, "in all namespaces")
	flags.DurationVar(&f.older, "older", pruneOlder, "only containers and images that were not changed for so long")
	return cmd
}

func (a *app) imagesPruneCommand() *cobra.Command {
	f := pruneFlags{images: true}
	cmd := &cobra.Command{
		Use:   "prune [--dry-run]",
		Short: "Remove images that no container is left of",
		Long: "Remove images that no container is left of, with all that only they kept.\n\n" +
			"JSON: a list of objects with kind, namespace, name, snapshotter, bytes, failed.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.prune(ctx, c, f) })
		},
	}
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "d", false, "tell what would go, and remove nothing")
	cmd.Flags().DurationVar(&f.older, "older", pruneOlder, "only images that were not changed for so long")
	return cmd
}

func (a *app) prune(ctx context.Context, c *client.Client, f pruneFlags) error {
	request := &maintenance.PruneRequest{
		Namespace: a.namespace, DryRun: f.dryRun, Containers: f.containers || f.all, Images: f.images || f.all,
		OlderSeconds: int64(f.older / time.Second),
	}
	if f.everywhere {
		request.Namespace = ""
	}
	stream, err := c.Maintenance().Prune(ctx, request)
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	all := []prunedThing{}
	var freed int64
	var failed []error
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("prune: %w", err)
		}
		one := prunedThing{p.GetKind(), p.GetNamespace(), p.GetName(), p.GetSnapshotter(), p.GetBytes(), p.GetFailed()}
		if all = append(all, one); one.Failed != "" {
			failed = append(failed, fmt.Errorf("%s %q stays: %s", one.Kind, one.Name, one.Failed))
		} else {
			freed += one.Bytes
		}
	}
	if a.json() {
		return errors.Join(writeJSON(a.out, all), errors.Join(failed...))
	}
	if len(all) > 0 {
		t := newTable(a.out, "KIND", "NAMESPACE", "NAME", "SIZE")
		for _, p := range all {
			t.row(p.Kind, p.Namespace, p.Name, humanSize(p.Bytes))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	verb := "freed"
	if f.dryRun {
		verb = "would be freed"
	}
	fmt.Fprintf(a.out, "%s %s\n", humanSize(freed), verb)
	return errors.Join(failed...)
}
