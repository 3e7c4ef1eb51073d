package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail string
	cmd := &cobra.Command{
		Use:               "logs [-f] [--tail LINES] CONTAINER",
		Short:             "Print the output of a container that was run with -d",
		Args:              exactArgs(1, "one container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, refs []string) error {
			lines, err := parseTail(tail)
			if err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.logs(ctx, c, refs[0], lines, follow) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the container ends")
	cmd.Flags().StringVar(&tail, "tail", "all", "start at this many lines before the end")
	return cmd
}

// parseTail reads a number of lines; negative means all.
func parseTail(text string) (int64, error) {
	if text == "all" {
		return -1, nil
	}
	lines, err := strconv.ParseInt(text, 10, 64)
	if err != nil || lines < 0 {
		return 0, fmt.Errorf("--tail %q is neither a number of lines nor all", text)
	}
	return lines, nil
}

func (a *app) logs(ctx context.Context, c *client.Client, ref string, tail int64, follow bool) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	err = c.ReadLog(ctx, container.ID(), tail, follow, a.out)
	if errdefs.IsNotFound(err) {
		return hint(err, "only what runs with -d has a log; the output of `berth run` without it goes where it was run")
	}
	return err
}
