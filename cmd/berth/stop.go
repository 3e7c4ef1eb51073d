package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
)

// defaultGrace is how long a container has to end after it was asked to.
const defaultGrace = 10 * time.Second

// killGrace bounds the wait for the end of a container that was killed.
const killGrace = 10 * time.Second

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop [-t SECONDS] CONTAINER...",
		Short: "Ask containers to end, and kill them if they do not in time",
		Long: "Send SIGTERM, or the signal that the image or --stop-signal of run names, wait, and then send SIGKILL.\n" +
			"The containers stay, with their exit status and log: `berth start` runs them again, `berth rm` removes them.",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(statusRunning, statusPaused),
		RunE: func(_ *cobra.Command, refs []string) error {
			if seconds < 0 {
				return usage(fmt.Errorf("-t %d is negative", seconds))
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error {
					return stop(ctx, c, container, time.Duration(seconds)*time.Second)
				})
			})
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", int(defaultGrace/time.Second), "seconds to wait before SIGKILL")
	return cmd
}

// stop ends a container's first process, by request if it heeds that within the
// grace. One that has ended already is no error.
func stop(ctx context.Context, c *client.Client, container *client.Container, grace time.Duration) error {
	if err := markStopped(c, container, true); err != nil {
		return err
	}
	state, err := taskState(ctx, c, container.ID())
	if err != nil {
		return err
	}
	if state == nil || state.GetStatus() == task.Status_STOPPED || state.GetStatus() == task.Status_CREATED {
		return nil
	}
	p := c.Process(container.ID(), "")
	if err := p.Signal(ctx, stopSignal(container)); err != nil {
		return ended(err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if _, err := p.Wait(waitCtx); err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return ended(err)
	}
	if err := p.Signal(ctx, unix.SIGKILL); err != nil {
		return ended(err)
	}
	killCtx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	if _, err := p.Wait(killCtx); ended(err) != nil {
		return fmt.Errorf("container %q goes on %s after SIGKILL: %w", container.ID(), killGrace, err)
	}
	return nil
}

// ended takes an error away that says that the process is gone.
func ended(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// stopSignal is the signal that asks a container to end.
func stopSignal(container *client.Container) unix.Signal {
	if signal, err := parseSignal(container.Record.GetLabels()[client.LabelStopSignal]); err == nil {
		return signal
	}
	return unix.SIGTERM
}
