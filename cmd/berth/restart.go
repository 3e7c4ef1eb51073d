package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/labels"
)

// restartUsage is that of --restart.
const restartUsage = "run it again when it ends: `POLICY` no, always, on-failure[:N] or unless-stopped"

func registerRestart(flags *pflag.FlagSet, policy *string) {
	flags.StringVar(policy, "restart", "", restartUsage)
}

// restartPolicies are offered to complete --restart.
var restartPolicies = []string{"no", "always", "on-failure", "on-failure:3", "unless-stopped"}

// checkRestart reads a policy as the daemon does. No policy is "no".
func checkRestart(policy string) (string, error) {
	name, most, bounded := strings.Cut(policy, ":")
	switch name {
	case "", "no":
		if !bounded {
			return "no", nil
		}
	case "always", "unless-stopped":
		if !bounded {
			return policy, nil
		}
	case "on-failure":
		if !bounded || most != "" && strings.Trim(most, "0123456789") == "" {
			return policy, nil
		}
	}
	return "", fmt.Errorf("--restart %q is none of no, always, on-failure[:N], unless-stopped", policy)
}

// restartLabels are those that ask the daemon to keep a container.
func restartLabels(policy, logURI string) map[string]string {
	set := map[string]string{
		labels.RestartStatus: "running", labels.RestartPolicy: policy, labels.RestartCount: "0", labels.RestartStopped: "false",
	}
	if logURI != "" {
		set[labels.RestartLogURI] = logURI
	}
	return set
}

// kept tells whether the daemon runs a container again when it ends.
func kept(container *client.Container) bool {
	return container.Record.GetLabels()[labels.RestartStatus] != ""
}

// markStopped tells the daemon, before a container is ended, that this is meant.
func markStopped(c *client.Client, container *client.Container, stopped bool) error {
	if !kept(container) {
		return nil
	}
	return setLabels(c, container.ID(), map[string]string{labels.RestartStopped: fmt.Sprint(stopped)})
}

func (a *app) updateCommand() *cobra.Command {
	var policy string
	cmd := &cobra.Command{
		Use:   "update --restart POLICY CONTAINER...",
		Short: "Change how containers are kept",
		Long: "Change the restart policy of containers. It holds from now on: with `always` or `unless-stopped` one that\n" +
			"has ended by itself is run again at once, one that was stopped with `berth stop` after `berth start`.",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if !cmd.Flags().Changed("restart") {
				return usage(errors.New("nothing to change; give --restart POLICY"))
			}
			policy, err := checkRestart(policy)
			if err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error { return changePolicy(ctx, c, container, policy) })
			})
		},
	}
	registerRestart(cmd.Flags(), &policy)
	_ = cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions(restartPolicies, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func changePolicy(ctx context.Context, c *client.Client, container *client.Container, policy string) error {
	switch {
	case policy == "no" && !kept(container):
		return nil
	case kept(container):
		return setLabels(c, container.ID(), map[string]string{labels.RestartPolicy: policy})
	}
	// It was made without a policy: where its output goes is known to its task.
	state, err := taskState(ctx, c, container.ID())
	if err != nil {
		return err
	}
	logURI := ""
	if out := state.GetStdout(); strings.Contains(out, "://") && !strings.HasPrefix(out, "fifo://") {
		logURI = out
	}
	return setLabels(c, container.ID(), restartLabels(policy, logURI))
}
