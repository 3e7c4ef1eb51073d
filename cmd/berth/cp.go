package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) copyCommand() *cobra.Command {
	var o client.CopyOptions
	cmd := &cobra.Command{
		Use:   "cp [FLAGS] CONTAINER:PATH PATH|-\n  berth cp [FLAGS] PATH|- CONTAINER:PATH",
		Short: "Copy files out of a container, or into one",
		Long: "Copy a file, or a directory with all in it, between a container and this machine. If the target is a directory\n" +
			"the copy goes into it; of a source DIR/. it is what DIR has that is copied. With - it is a tar of the files, on\n" +
			"standard output or input.\n\n" +
			"Of a container that runs, the files are those that its processes see, with volumes; of another they are those\n" +
			"of its image and what it changed. What is copied in belongs to the container's root, what is copied out to you.",
		Args: exactArgs(2, "source and target"),
		RunE: func(_ *cobra.Command, args []string) error {
			from, fromPath, in := containerPath(args[0])
			to, toPath, out := containerPath(args[1])
			if in == out {
				return usage(errors.New("one of the two, and not both, has to be in a container, as CONTAINER:PATH"))
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				if in {
					return a.copyOut(ctx, c, from, fromPath, args[1], o)
				}
				return a.copyIn(ctx, c, args[0], to, toPath, o)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Archive, "archive", "a", false, "keep owners, extended attributes, set-id bits and devices")
	flags.BoolVarP(&o.Follow, "follow-link", "L", false, "copy what a link stands for, if the source is one")
	return cmd
}

// containerPath splits CONTAINER:PATH. A path of this machine that has a colon is
// written with a slash or a dot at its beginning.
func containerPath(arg string) (container, path string, ok bool) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return "", "", false
	}
	container, path, ok = strings.Cut(arg, ":")
	return container, path, ok && container != ""
}

func (a *app) copyOut(ctx context.Context, c *client.Client, ref, from, to string, o client.CopyOptions) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	if to == "-" {
		if client.IsTerminal(a.out) {
			return hint(errors.New("standard output is a terminal, and a tar is nothing to read"), "send it to a file, or to `tar -t`")
		}
		err = c.PackOut(ctx, container.ID(), from, a.out, o)
	} else {
		err = c.CopyOut(ctx, container.ID(), from, to, o)
	}
	if err != nil {
		return fmt.Errorf("copy from container %q: %w", container.ID(), err)
	}
	return nil
}

func (a *app) copyIn(ctx context.Context, c *client.Client, from, ref, to string, o client.CopyOptions) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	if from == "-" {
		if client.IsTerminal(a.in) {
			return hint(errors.New("standard input is a terminal, not a tar"), "pipe one in, or name a file")
		}
		err = c.UnpackIn(ctx, a.in, container.ID(), to)
	} else {
		err = c.CopyIn(ctx, from, container.ID(), to, o)
	}
	if err != nil {
		return fmt.Errorf("copy to container %q: %w", container.ID(), err)
	}
	return nil
}
