package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/protobuf"
)

// imageState is an image in the JSON of images ls and images inspect.
type imageState struct {
	Name      string            `json:"name"`
	Digest    string            `json:"digest"` // of what the name stands for: a manifest or an index
	MediaType string            `json:"media_type"`
	Platform  string            `json:"platform"` // of the variant for this machine; empty: there is none
	Size      int64             `json:"size"`     // bytes of its content, packed
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	Labels    map[string]string `json:"labels"`

	Manifest string           `json:"manifest,omitempty"` // its digest
	ChainID  string           `json:"chain_id,omitempty"` // name of the snapshot of its unpacked layers
	Config   *imagespec.Image `json:"config,omitempty"`
}

func (a *app) imagesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "images",
		Aliases: []string{"image"},
		Short:   "Look after images",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesList(ctx, c, false) })
		},
	}
	cmd.AddCommand(a.imagesImportCommand(), a.imagesListCommand(), a.imagesRemoveCommand(), a.imagesInspectCommand(),
		a.imagesTagCommand(), a.imagesHistoryCommand(), a.imagesCheckCommand(), a.imagesPruneCommand(), a.imagesExportCommand(), a.imagesConvertCommand())
	return cmd
}

func (a *app) imagesListCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [-q]",
		Aliases: []string{"list"},
		Short:   "List images",
		Long: "List images.\n\n" +
			"JSON: a list of objects with name, digest, media_type, platform, size, created_at, updated_at, labels.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesList(ctx, c, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only the names")
	return cmd
}

func (a *app) imagesList(ctx context.Context, c *client.Client, quiet bool) error {
	list, err := c.Images().List(ctx, &images.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	states := []imageState{}
	for _, image := range list.GetImages() {
		if quiet {
			fmt.Fprintln(a.out, familiar(image.GetName()))
			continue
		}
		// One without content for this machine is an image still.
		state, _, err := imageStateOf(ctx, c, image)
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			return err
		}
		states = append(states, state)
	}
	switch {
	case quiet:
		return nil
	case a.json():
		return writeJSON(a.out, states)
	}
	t := newTable(a.out, "NAME", "DIGEST", "PLATFORM", "SIZE", "CREATED")
	for _, s := range states {
		size := "-"
		if s.Size > 0 {
			size = humanSize(s.Size)
		}
		t.row(familiar(s.Name), shortDigest(s.Digest), or(s.Platform, "-"), size, a.humanAge(s.CreatedAt))
	}
	return t.flush()
}

// imageStateOf puts together what is known of an image. With an error, that of
// reading its content, what the record says is there all the same.
func imageStateOf(ctx context.Context, c *client.Client, image *images.Image) (imageState, *client.ImageConfig, error) {
	s := imageState{
		Name:      image.GetName(),
		Digest:    image.GetTarget().GetDigest(),
		MediaType: image.GetTarget().GetMediaType(),
		CreatedAt: protobuf.Time(image.GetCreatedAt()),
		UpdatedAt: protobuf.Time(image.GetUpdatedAt()),
		Labels:    image.GetLabels(),
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	config, err := c.ImageConfig(ctx, image)
	if err != nil {
		return s, nil, err
	}
	s.Platform = platforms.Format(config.Image.Platform)
	s.Size = config.Size
	return s, config, nil
}

func (a *app) imagesInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Tell everything about images, as JSON",
		Long: "Print a JSON list of objects: those of images ls, and manifest (its digest), chain_id (the snapshot of its\n" +
			"unpacked layers) and config, the OCI image configuration.",
		Args:              minArgs(1, "image"),
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesInspect(ctx, c, names) })
		},
	}
}

func (a *app) imagesInspect(ctx context.Context, c *client.Client, names []string) error {
	states := []imageState{}
	var failed []error
	for _, name := range names {
		image, err := findImage(ctx, c, name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		state, config, err := imageStateOf(ctx, c, image)
		if err != nil {
			failed = append(failed, err)
		} else {
			state.Manifest, state.ChainID, state.Config = config.Manifest.Digest.String(), config.ChainID.String(), &config.Image
		}
		states = append(states, state)
	}
	return errors.Join(writeJSON(a.out, states), errors.Join(failed...))
}

func (a *app) imagesRemoveCommand() *cobra.Command {
	var sync bool
	cmd := &cobra.Command{
		Use:     "rm [--sync] IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Long: "Remove the names of images. Their content goes with the next collection, unless another image or a container\n" +
			"has it too.",
		Args:              minArgs(1, "image"),
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesRemove(ctx, c, names, sync) })
		},
	}
	cmd.Flags().BoolVar(&sync, "sync", false, "return when the content is gone")
	return cmd
}

func (a *app) imagesRemove(ctx context.Context, c *client.Client, names []string, sync bool) error {
	var failed []error
	for i, name := range names {
		image, err := findImage(ctx, c, name)
		if err == nil {
			last := i == len(names)-1
			_, err = c.Images().Delete(ctx, &images.DeleteImageRequest{Name: image.GetName(), Sync: sync && last})
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(a.out, familiar(image.GetName()))
	}
	return errors.Join(failed...)
}

// findImage finds an image, and if there is none says what to do.
func findImage(ctx context.Context, c *client.Client, name string) (*images.Image, error) {
	image, err := c.FindImage(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, hint(err, "`berth images ls` lists what is there; `berth pull NAME` and `berth images import FILE` bring images in")
	}
	return image, err
}

// familiar is an image's name as people write it: without docker.io/library.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}
