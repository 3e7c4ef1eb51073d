package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) commitCommand() *cobra.Command {
	var o client.CommitOptions
	var noPause bool
	var changes []string
	var compression string
	cmd := &cobra.Command{
		Use:   "commit [FLAGS] CONTAINER IMAGE",
		Short: "Make an image of what a container has changed",
		Long: "Make an image of a container: its own image, and what it has changed as one layer more. The container is\n" +
			"paused while its files are read. Mounts and volumes are not part of it. IMAGE is then the new image.\n\n" +
			"JSON: an object with name, digest.",
		Args:              exactArgs(2, "container and image"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, args []string) error {
			named, err := reference.ParseDockerRef(args[1])
			if err != nil {
				return usage(fmt.Errorf("image %q: %w: %w", args[1], err, errdefs.ErrInvalidArgument))
			}
			if _, pinned := named.(reference.Digested); pinned {
				return usage(fmt.Errorf("image %q: its digest is known once it is made; give it a tag", args[1]))
			}
			o.Name, o.LeaveRunning = named.String(), noPause
			mediaType, known := layerTypes[compression]
			if !known {
				return usage(fmt.Errorf("--compression %q is neither gzip, zstd nor none", compression))
			}
			o.MediaType = mediaType
			if o.Change, err = instruct(changes); err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.commit(ctx, c, args[0], o) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.Author, "author", "a", "", "author, for its history")
	flags.StringVarP(&o.Message, "message", "m", "", "what is new, for its history")
	flags.StringArrayVarP(&changes, "change", "c", nil, "what containers of the image are to be, as an `INSTRUCTION` of a Dockerfile: CMD, ENTRYPOINT, ENV and so on")
	flags.StringVar(&compression, "compression", "gzip", "of the new layer: gzip, zstd or none")
	flags.BoolVar(&noPause, "no-pause", false, "let the container run while its files are read")
	return cmd
}

// layerTypes are the media types of layers by their compression.
var layerTypes = map[string]string{
	"gzip": imagespec.MediaTypeImageLayerGzip, "zstd": imagespec.MediaTypeImageLayerZstd, "none": imagespec.MediaTypeImageLayer,
}

// committedImage is the image in the JSON of commit.
type committedImage struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

func (a *app) commit(ctx context.Context, c *client.Client, ref string, o client.CommitOptions) (err error) {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	leased, end, err := c.Lease(ctx, leaseTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	image, err := leased.Commit(ctx, container.ID(), o)
	if err != nil {
		return err
	}
	if a.json() {
		return writeJSON(a.out, committedImage{Name: image.GetName(), Digest: image.GetTarget().GetDigest()})
	}
	fmt.Fprintf(a.out, "%s  %s\n", o.Name, image.GetTarget().GetDigest())
	return nil
}
