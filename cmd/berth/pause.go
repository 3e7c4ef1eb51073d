package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/client"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "pause CONTAINER...",
		Short:             "Stop all processes of containers where they are, until unpause",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(statusRunning),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error {
					_, err := c.Tasks().Pause(ctx, &tasks.PauseTaskRequest{ContainerId: container.ID()})
					return notRunning(err, container.ID())
				})
			})
		},
	}
}

func (a *app) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "unpause CONTAINER...",
		Aliases:           []string{"resume"},
		Short:             "Let paused containers go on",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(statusPaused),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error {
					_, err := c.Tasks().Resume(ctx, &tasks.ResumeTaskRequest{ContainerId: container.ID()})
					return notRunning(err, container.ID())
				})
			})
		},
	}
}
