package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/durable"
)

// exportFlags say what of images goes into an archive, and where that goes.
type exportFlags struct {
	output       string
	platforms    []string
	allPlatforms bool
	noDocker     bool
	noForeign    bool
}

func (a *app) imagesExportCommand() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:     "export [flags] -o FILE|- IMAGE...",
		Aliases: []string{"save"},
		Short:   "Write images to an archive",
		Long: "Write images to a tar archive that is an OCI layout, and that `docker load` takes too. The same images give the\n" +
			"same bytes. With -o - it goes to standard output.",
		Example: "  berth images export -o app.tar app:1.2\n" +
			"  berth images export -o - app:1.2 | ssh other berth images import -",
		Args:              minArgs(1, "image"),
		ValidArgsFunction: a.completeImages(),
		RunE: func(_ *cobra.Command, names []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesExport(ctx, c, &f, names) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "`file` to write, or - for standard output")
	flags.StringArrayVar(&f.platforms, "platform", nil, "`platform` to write, as OS/ARCHITECTURE[/VARIANT]; more than once for several")
	flags.BoolVar(&f.allPlatforms, "all-platforms", false, "write every platform; all have to be here")
	flags.BoolVar(&f.noDocker, "no-docker", false, "leave out manifest.json, which is for docker load")
	flags.BoolVar(&f.noForeign, "no-foreign-layers", false, "leave out layers that are not to be passed on, as Windows' are")
	return cmd
}

func (a *app) imagesExport(ctx context.Context, c *client.Client, f *exportFlags, names []string) error {
	switch {
	case f.output == "":
		return usage(errors.New("-o is missing: the file to write, or - for standard output"))
	case f.allPlatforms && len(f.platforms) > 0:
		return usage(errors.New("--all-platforms and --platform: it is either all, or some"))
	case f.output == "-" && client.IsTerminal(a.out):
		return hint(errors.New("standard output is a terminal, which an archive is not for"), "redirect it, or name a file with -o")
	}
	var full []string
	for _, name := range names {
		image, err := findImage(ctx, c, name)
		if err != nil {
			return err
		}
		full = append(full, image.GetName())
	}
	write := func(w io.Writer) error {
		show := a.newProgress(false)
		err := c.Export(ctx, full, w, client.ExportOptions{
			Platforms: f.platforms, AllPlatforms: f.allPlatforms, NoDocker: f.noDocker, NoForeign: f.noForeign, Progress: show.transferred,
		})
		show.end(err == nil)
		return err
	}
	if f.output == "-" {
		return write(a.out)
	}
	return newFile(f.output, write)
}

// newFile makes a file of what write writes, which is there whole or not at all. What
// is no regular file, such as a fifo, is written to as it is.
func newFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return durable.RenameVolatile("images.export", f.Name(), path)
}
