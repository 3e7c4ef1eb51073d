package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
)

func (a *app) killCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:               "kill [-s SIGNAL] CONTAINER...",
		Short:             "Send a signal to containers, SIGKILL unless told otherwise",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(statusRunning, statusPaused),
		RunE: func(_ *cobra.Command, refs []string) error {
			signal, err := parseSignal(name)
			if err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error {
					return notRunning(c.Process(container.ID(), "").Signal(ctx, signal), container.ID())
				})
			})
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "signal, as a name or a number")
	_ = cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions(
		[]string{"HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// notRunning makes the error of a process that is not there say so.
func notRunning(err error, id string) error {
	if errdefs.IsNotFound(err) {
		return hint(fmt.Errorf("container %q does not run", id), "`berth start %s` runs it again", id)
	}
	return err
}

// lastSignal is the highest number of a signal on Linux.
const lastSignal = 64

// parseSignal reads a signal like "TERM", "SIGTERM" or "15".
func parseSignal(text string) (unix.Signal, error) {
	if number, err := strconv.Atoi(text); err == nil {
		if number < 1 || number > lastSignal {
			return 0, fmt.Errorf("signal %d is not between 1 and %d", number, lastSignal)
		}
		return unix.Signal(number), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if signal := unix.SignalNum(name); signal != 0 {
		return signal, nil
	}
	if signal, ok := realtime(name); ok {
		return signal, nil
	}
	return 0, fmt.Errorf("unknown signal %q", text)
}

// Bounds of the real-time signals that libc leaves to programs (signal(7)).
const (
	firstRealtime = 34
	lastRealtime  = 64
)

// realtime reads SIGRTMIN, SIGRTMIN+3, SIGRTMAX-2 and the like.
func realtime(name string) (unix.Signal, bool) {
	base := firstRealtime
	rest, ok := strings.CutPrefix(name, "SIGRTMIN")
	if !ok {
		if rest, ok = strings.CutPrefix(name, "SIGRTMAX"); !ok {
			return 0, false
		}
		base = lastRealtime
	}
	offset := 0
	if rest != "" {
		var err error
		if offset, err = strconv.Atoi(rest); err != nil {
			return 0, false
		}
	}
	signal := base + offset
	return unix.Signal(signal), signal >= firstRealtime && signal <= lastRealtime
}
