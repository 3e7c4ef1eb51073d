package main

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [-f] CONTAINER...",
		Aliases:           []string{"remove"},
		Short:             "Remove containers, with their files and logs",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error {
					return remove(ctx, c, container.ID(), force)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill what runs")
	return cmd
}

// remove removes a container; that it went meanwhile is no error.
func remove(ctx context.Context, c *client.Client, id string, force bool) error {
	err := c.Remove(ctx, id, force)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errors.Is(err, errdefs.ErrFailedPrecondition) && !force:
		return hint(err, "`berth stop %s` ends it first; `berth rm -f %s` kills it", id, id)
	}
	return err
}
