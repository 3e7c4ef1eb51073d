package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff CONTAINER",
		Short: "List what a container has changed of its image's files",
		Long: "List what is different in a container from its image, by path: A for what it added, C for what it changed, D for\n" +
			"what it deleted, with all that was in it. Mounts and volumes are not part of it.\n\n" +
			"JSON: a list of objects with kind, path.",
		Args:              exactArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.diff(ctx, c, args[0]) })
		},
	}
}

func (a *app) diff(ctx context.Context, c *client.Client, ref string) (err error) {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	leased, end, err := c.Lease(ctx, leaseTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	list, err := leased.Changes(ctx, container.ID())
	if err != nil {
		return err
	}
	if a.json() {
		return writeJSON(a.out, append([]client.Change{}, list...))
	}
	for _, change := range list {
		fmt.Fprintf(a.out, "%s %s\n", change.Kind, printable(change.Path))
	}
	return nil
}

// printable is a name that a container chose, so that it does nothing to a terminal.
func printable(name string) string {
	odd := func(r rune) bool { return r == utf8.RuneError || r != ' ' && !unicode.IsPrint(r) }
	if strings.IndexFunc(name, odd) < 0 {
		return name
	}
	quoted := strconv.Quote(name)
	return quoted[1 : len(quoted)-1]
}
