package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/client"
)

// pullFlags say what of an image to bring in.
type pullFlags struct {
	platforms    []string
	allPlatforms bool
	noUnpack     bool
	snapshotter  string
	quiet        bool
	registry     registryFlags
}

// movedImage is an image in the JSON of pull and push.
type movedImage struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
}

func (f *pullFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.platforms, "platform", nil, "`platform` to bring in, as OS/ARCHITECTURE[/VARIANT]; more than once for several")
	flags.BoolVar(&f.allPlatforms, "all-platforms", false, "bring in the content for every platform")
	flags.BoolVar(&f.noUnpack, "no-unpack", false, "leave the image packed")
	flags.StringVar(&f.snapshotter, "snapshotter", "", "`snapshotter` to unpack for")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress, and only the name in the end")
	f.registry.register(flags)
}

func (a *app) pullCommand() *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] NAME",
		Short: "Bring an image in from a registry",
		Long: "Bring an image in from its registry, and unpack it while it comes. A name without a registry is of docker.io,\n" +
			"one without a tag means latest. A pull that was broken off goes on where it was.\n\n" +
			"Passwords are those of `berth login`. How registries are reached (mirrors, certificates, plain http) is said in\n" +
			"the directory registry.hosts_dir of the daemon's configuration.\n\n" +
			"JSON: an object with name, digest, media_type.",
		Example: "  berth pull alpine\n" +
			"  berth pull --platform linux/arm64 --no-unpack registry.example:5000/team/app:1.2",
		Args:              exactArgs(1, "one name of an image"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				image, err := a.pull(ctx, c, &f, args[0])
				if err != nil {
					return err
				}
				return a.moved(image.GetName(), image, f.quiet)
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// pull brings an image in and shows how far it is.
func (a *app) pull(ctx context.Context, c *client.Client, f *pullFlags, name string) (*images.Image, error) {
	if f.allPlatforms && len(f.platforms) > 0 {
		return nil, usage(fmt.Errorf("--all-platforms and --platform: it is either all, or some"))
	}
	registry, err := a.registry(&f.registry, name)
	if err != nil {
		return nil, err
	}
	show := a.newProgress(f.quiet)
	image, err := c.Pull(ctx, name, client.PullOptions{
		Platforms: f.platforms, AllPlatforms: f.allPlatforms, NoUnpack: f.noUnpack, Snapshotter: f.snapshotter,
		Registry: registry, Progress: show.transferred,
	})
	show.end(err == nil)
	return image, err
}

// moved says what image was moved.
func (a *app) moved(name string, image *images.Image, quiet bool) error {
	target := image.GetTarget()
	switch {
	case a.json():
		return writeJSON(a.out, movedImage{name, target.GetDigest(), target.GetMediaType()})
	case quiet:
		fmt.Fprintln(a.out, familiar(name))
	default:
		fmt.Fprintf(a.out, "%s  %s\n", familiar(name), target.GetDigest())
	}
	return nil
}

// When run pulls the image.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// ensure makes sure that an image is here before a container is made from it.
func (a *app) ensure(ctx context.Context, c *client.Client, when, name, snapshotter string) error {
	switch when {
	case pullNever:
		return nil
	case pullMissing:
		_, err := c.FindImage(ctx, name)
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	_, err := a.pull(ctx, c, &pullFlags{snapshotter: snapshotter}, name)
	if err != nil && when == pullMissing {
		return hint(err, "the image is not here, so it was to be pulled; `berth images ls` lists what is here, `berth images import FILE` brings images in")
	}
	return err
}
