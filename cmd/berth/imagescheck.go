package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// checkedImage is how much of an image is there, as JSON has it.
type checkedImage struct {
	Namespace string           `json:"namespace"`
	Name      string           `json:"name"`
	Digest    string           `json:"digest"`
	Problem   string           `json:"problem"` // empty: nothing is wrong
	Platforms []checkedVariant `json:"platforms"`
}

type checkedVariant struct {
	Platform string   `json:"platform"`
	Manifest string   `json:"manifest"`
	State    string   `json:"state"` // whole, partial, absent: not fetched
	Missing  []string `json:"missing,omitempty"`
	Unpacked []string `json:"unpacked,omitempty"` // for these snapshotters
	Broken   []string `json:"broken,omitempty"`   // unpacked once, and not in full any more
	Size     int64    `json:"size"`
}

func (a *app) imagesCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [IMAGE...]",
		Short: "Tell whether images are whole and unpacked",
		Long: "Tell of each image, or of those named, for which platforms it is there, whether all of its blobs are, and which\n" +
			"snapshotters have it unpacked. Variants that were not fetched are no problem. `berth fsck --repair` fetches what is\n" +
			"missing; so does a pull or an import.\n\n" +
			"JSON: a list of objects with namespace, name, digest, problem, platforms (platform, manifest, state, missing,\n" +
			"unpacked, broken, size).\n\n" +
			"Exit status: 1 if an image has a problem.",
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesCheck(ctx, c, names) })
		},
	}
}

func (a *app) imagesCheck(ctx context.Context, c *client.Client, names []string) error {
	request := &maintenance.CheckImagesRequest{Namespace: a.namespace}
	for _, name := range names {
		image, err := findImage(ctx, c, name)
		if err != nil {
			return err
		}
		request.Names = append(request.Names, image.GetName())
	}
	stream, err := c.Maintenance().CheckImages(ctx, request)
	if err != nil {
		return fmt.Errorf("check images: %w", err)
	}
	all := []checkedImage{}
	bad := 0
	for {
		s, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("check images: %w", err)
		}
		one := checkedImage{Namespace: s.GetNamespace(), Name: s.GetName(), Digest: s.GetDigest(), Problem: s.GetProblem(), Platforms: []checkedVariant{}}
		for _, p := range s.GetPlatforms() {
			one.Platforms = append(one.Platforms, checkedVariant{
				p.GetPlatform(), p.GetManifest(), p.GetState(), p.GetMissing(), p.GetUnpacked(), p.GetBroken(), p.GetBytes(),
			})
		}
		if all = append(all, one); one.Problem != "" {
			bad++
		}
	}
	if a.json() {
		err = writeJSON(a.out, all)
	} else {
		err = a.imagesCheckTable(all)
	}
	if err == nil && bad > 0 {
		err = hint(fmt.Errorf("images with a problem: %d", bad), "`berth fsck --repair` fetches and unpacks what is missing; so does a pull or an import")
	}
	return err
}

func (a *app) imagesCheckTable(all []checkedImage) error {
	t := newTable(a.out, "NAME", "PLATFORM", "STATE", "SIZE", "UNPACKED", "PROBLEM")
	for _, i := range all {
		said := or(i.Problem, "-")
		for _, v := range i.Platforms {
			if v.State == "absent" && len(i.Platforms) > 1 {
				continue
			}
			t.row(familiar(i.Name), or(v.Platform, "-"), v.State, humanSize(v.Size), or(strings.Join(v.Unpacked, ","), "-"), said)
			said = ""
		}
		if said != "" {
			t.row(familiar(i.Name), "-", "absent", "-", "-", said)
		}
	}
	return t.flush()
}
