package main

import (
	"context"
	"errors"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) imagesConvertCommand() *cobra.Command {
	var o client.ConvertOptions
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "convert [flags] IMAGE NAME",
		Short: "Make an image with other media types or another compression",
		Long: "Make another image with the same files, under another name: of OCI's media types, with layers that are\n" +
			"compressed otherwise, for this machine's platform or those that are chosen. What is unpacked of the one image is\n" +
			"unpacked of the other. Attestations are about the old image, and stay there.\n\n" +
			"JSON: an object with name, digest, media_type.",
		Example: "  berth images convert --layers zstd app:1.2 registry.example:5000/app:1.2-zstd\n" +
			"  berth images convert --all-platforms app:1.2 app:oci",
		Args:              exactArgs(2, "an image and a name"),
		ValidArgsFunction: first(a.completeImages()),
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case all && len(o.Platforms) > 0:
				return usage(errors.New("--all-platforms and --platform: it is either all, or some"))
			case !all && len(o.Platforms) == 0:
				o.Platforms = []string{platforms.Format(platforms.DefaultSpec())}
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.imagesConvert(ctx, c, o, quiet, args[0], args[1])
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Layers, "layers", "", "`compression` of the layers: gzip, zstd, plain; default: as they are")
	flags.StringArrayVar(&o.Platforms, "platform", nil, "`platform` to convert, as OS/ARCHITECTURE[/VARIANT]; more than once for several")
	flags.BoolVar(&all, "all-platforms", false, "convert every platform; all have to be here")
	flags.BoolVarP(&quiet, "quiet", "q", false, "show no progress, and only the name in the end")
	_ = cmd.RegisterFlagCompletionFunc("layers", cobra.FixedCompletions(
		[]string{client.LayersGzip, client.LayersZstd, client.LayersPlain}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) imagesConvert(ctx context.Context, c *client.Client, o client.ConvertOptions, quiet bool, from, to string) (err error) {
	image, err := findImage(ctx, c, from)
	if err != nil {
		return err
	}
	leased, end, err := c.Lease(ctx, leaseTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	show := a.newProgress(quiet)
	o.Name = to
	o.Progress = func(layer digest.Digest, done, total int64) {
		status := "converting"
		if done == total {
			status = "converted"
		}
		show.update(step{layer.String(), status, done, total})
	}
	made, err := leased.Convert(ctx, image, o)
	show.end(err == nil)
	if err != nil {
		return err
	}
	return a.moved(made.GetName(), made, quiet)
}
