package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) pushCommand() *cobra.Command {
	var f struct {
		platforms []string
		quiet     bool
		registry  registryFlags
	}
	cmd := &cobra.Command{
		Use:   "push [flags] IMAGE [NAME]",
		Short: "Bring an image to a registry",
		Long: "Bring an image to the registry in its name, or under another name. All of it that is here is pushed: of an image\n" +
			"for several platforms of which one is here, that one alone.\n\n" +
			"JSON: an object with name, digest, media_type of the image here.",
		Example: "  berth push registry.example:5000/team/app:1.2\n" +
			"  berth push app:dev registry.example:5000/team/app:dev",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: first(a.completeImages()),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				image, err := findImage(ctx, c, args[0])
				if err != nil {
					return err
				}
				to := image.GetName()
				if len(args) == 2 {
					if to, err = client.ReferenceName(args[1]); err != nil {
						return err
					}
				}
				registry, err := a.registry(&f.registry, to)
				if err != nil {
					return err
				}
				show := a.newProgress(f.quiet)
				err = c.Push(ctx, image, to, client.PushOptions{Platforms: f.platforms, Registry: registry, Progress: show.transferred})
				show.end(err == nil)
				if err != nil {
					return err
				}
				return a.moved(to, image, f.quiet)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.platforms, "platform", nil, "`platform` to push, as OS/ARCHITECTURE[/VARIANT]; more than once for several")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress, and only the name in the end")
	f.registry.register(flags)
	return cmd
}
