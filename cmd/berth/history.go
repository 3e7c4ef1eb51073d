package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

func (a *app) imagesTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image one more name",
		Long: "Give an image one more name. Another image that had the name loses it.\n\n" +
			"JSON: an object with name, digest.",
		Args:              exactArgs(2, "image and name"),
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				image, err := findImage(ctx, c, args[0])
				if err != nil {
					return err
				}
				named, err := c.TagImage(ctx, image, args[1])
				if err != nil {
					return err
				}
				if a.json() {
					return writeJSON(a.out, committedImage{Name: named.GetName(), Digest: named.GetTarget().GetDigest()})
				}
				fmt.Fprintln(a.out, familiar(named.GetName()))
				return nil
			})
		},
	}
}

// historyStep is a line of an image's history, and an element of its JSON.
type historyStep struct {
	CreatedAt *time.Time `json:"created_at"`
	CreatedBy string     `json:"created_by"`
	Author    string     `json:"author,omitempty"`
	Comment   string     `json:"comment,omitempty"`
	Layer     string     `json:"layer,omitempty"` // digest; empty: the step made none
	Size      int64      `json:"size"`            // of the layer, packed, in bytes
}

func (a *app) imagesHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history IMAGE",
		Short: "Tell how an image came to be, the last step first",
		Long: "Tell how an image came to be, the last step first, as far as who made it wrote it down. Sizes are those of\n" +
			"packed layers.\n\n" +
			"JSON: a list of objects with created_at, created_by, author, comment, layer, size.",
		Args:              exactArgs(1, "image"),
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesHistory(ctx, c, args[0]) })
		},
	}
}

func (a *app) imagesHistory(ctx context.Context, c *client.Client, name string) error {
	image, err := findImage(ctx, c, name)
	if err != nil {
		return err
	}
	config, err := c.ImageConfig(ctx, image)
	if err != nil {
		return err
	}
	steps := historyOf(config)
	if a.json() {
		return writeJSON(a.out, steps)
	}
	t := newTable(a.out, "CREATED", "SIZE", "CREATED BY", "COMMENT")
	for _, s := range steps {
		created, size := "-", "-"
		if s.CreatedAt != nil {
			created = a.humanAge(*s.CreatedAt)
		}
		if s.Layer != "" {
			size = humanSize(s.Size)
		}
		t.row(created, size, shorten(or(s.CreatedBy, "-"), 60), shorten(s.Comment, 40))
	}
	return t.flush()
}

// historyOf puts the steps and the layers of an image together, the last first. Layers
// that no step is written down for stand alone.
func historyOf(config *client.ImageConfig) []historyStep {
	steps := []historyStep{}
	layers := config.Layers
	take := func(s *historyStep) {
		if len(layers) > 0 {
			s.Layer, s.Size = layers[0].Digest.String(), layers[0].Size
			layers = layers[1:]
		}
	}
	for _, h := range config.Image.History {
		s := historyStep{CreatedAt: h.Created, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment}
		if !h.EmptyLayer {
			take(&s)
		}
		steps = append(steps, s)
	}
	for len(layers) > 0 {
		var s historyStep
		take(&s)
		steps = append(steps, s)
	}
	slices.Reverse(steps)
	return steps
}
