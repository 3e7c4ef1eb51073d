package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/client"
)

// waitResult is a container in the JSON of wait.
type waitResult struct {
	ID         string     `json:"id"`
	ExitStatus uint32     `json:"exit_status"`
	ExitedAt   *time.Time `json:"exited_at,omitempty"`
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait CONTAINER...",
		Short: "Wait until containers have ended and print their exit statuses",
		Long: "Wait until containers have ended and print their exit statuses, one a line, in the order named.\n" +
			"If one has ended already, its status is printed at once. The daemon may go away and come back meanwhile.\n\n" +
			"JSON: a list of objects with id, exit_status, exited_at.",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.wait(ctx, c, refs) })
		},
	}
}

func (a *app) wait(ctx context.Context, c *client.Client, refs []string) error {
	results := make([]*waitResult, len(refs))
	failed := make([]error, len(refs))
	var group errgroup.Group
	for i, ref := range refs {
		group.Go(func() error {
			results[i], failed[i] = waitOne(ctx, c, ref)
			return nil
		})
	}
	_ = group.Wait() // the errors are in failed
	known := []*waitResult{}
	for _, r := range results {
		if r != nil {
			known = append(known, r)
		}
	}
	if a.json() {
		return errors.Join(writeJSON(a.out, known), errors.Join(failed...))
	}
	for _, r := range known {
		fmt.Fprintln(a.out, r.ExitStatus)
	}
	return errors.Join(failed...)
}

func waitOne(ctx context.Context, c *client.Client, ref string) (*waitResult, error) {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return nil, err
	}
	exit, err := c.Process(container.ID(), "").Wait(ctx)
	if err == nil {
		return &waitResult{ID: container.ID(), ExitStatus: exit.Status, ExitedAt: &exit.At}, nil
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	// No task: what is known is in the labels, maybe only since a moment ago.
	fresh, err := c.Container(ctx, container.ID())
	if err != nil {
		return nil, err
	}
	state := stateOf(fresh.Record, nil)
	if state.ExitStatus == nil {
		return nil, hint(fmt.Errorf("container %q has never run", container.ID()), "`berth start %s` runs it", container.ID())
	}
	return &waitResult{ID: container.ID(), ExitStatus: *state.ExitStatus, ExitedAt: state.ExitedAt}, nil
}
