package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/client"
)

// importedImage is an image in the JSON of images import.
type importedImage struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	ChainID   string `json:"chain_id,omitempty"` // empty: not unpacked
}

func (a *app) imagesImportCommand() *cobra.Command {
	var o images.ImportOptions
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|DIRECTORY|-",
		Short: "Bring images in from an archive or an OCI layout",
		Long: "Bring images in, and unpack them, from a tar archive (an OCI layout or what `docker save` writes; plain, gzip\n" +
			"or zstd), from a directory that is an OCI layout, or with - from such an archive on standard input.\n\n" +
			"JSON: a list of objects with name, digest, media_type, chain_id.",
		Args: exactArgs(1, "one file or directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.imagesImport(ctx, c, args[0], &o) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Name, "name", "", "name for the image, if the archive holds one image that brings none")
	flags.StringVar(&o.Snapshotter, "snapshotter", "", "snapshotter to unpack for")
	flags.StringVar(&o.Platform, "platform", "", "platform to bring in, as OS/ARCHITECTURE[/VARIANT]")
	flags.BoolVar(&o.AllPlatforms, "all-platforms", false, "keep the content for every platform")
	flags.BoolVar(&o.NoUnpack, "no-unpack", false, "leave the images packed")
	return cmd
}

func (a *app) imagesImport(ctx context.Context, c *client.Client, source string, o *images.ImportOptions) error {
	archive, err := a.openArchive(source)
	if err != nil {
		return err
	}
	defer archive.Close()
	show := a.newProgress(false)
	made, err := c.Import(ctx, archive, o, show.imported)
	show.end(err == nil)
	if err != nil {
		return err
	}
	if a.json() {
		list := []importedImage{}
		for _, image := range made {
			list = append(list, importedImage{Name: image.GetName(), Digest: image.GetDigest(), MediaType: image.GetMediaType(), ChainID: image.GetChainId()})
		}
		return writeJSON(a.out, list)
	}
	for _, image := range made {
		fmt.Fprintf(a.out, "%s  %s\n", familiar(image.GetName()), image.GetDigest())
	}
	return nil
}

// openArchive opens what is to be imported as a stream of tar.
func (a *app) openArchive(source string) (io.ReadCloser, error) {
	if source == "-" {
		if client.IsTerminal(a.in) {
			return nil, hint(errors.New("standard input is a terminal, not an archive"), "pipe one in, or name a file")
		}
		return io.NopCloser(a.in), nil
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.Open(source)
	}
	if _, err := os.Stat(filepath.Join(source, layoutFile)); err != nil {
		return nil, hint(fmt.Errorf("directory %q is no OCI layout: %w", source, err),
			"such a directory holds %s, index.json and blobs, as `skopeo copy … oci:DIRECTORY` makes it", layoutFile)
	}
	return packLayout(source), nil
}

// layoutFile marks a directory as an OCI layout (image-spec, image-layout.md).
const layoutFile = "oci-layout"

// packLayout gives an OCI layout as a stream of tar, without a copy on disk.
func packLayout(dir string) io.ReadCloser {
	reader, writer := io.Pipe()
	go func() {
		w := tar.NewWriter(writer)
		err := errors.Join(packFile(w, dir, layoutFile), packFile(w, dir, "index.json"))
		if err == nil {
			err = packBlobs(w, dir)
		}
		if err == nil {
			err = w.Close()
		}
		writer.CloseWithError(err) // nil is the end of the stream
	}()
	return reader
}

func packBlobs(w *tar.Writer, dir string) error {
	return filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return packFile(w, dir, name)
	})
}

// packFile adds one file to the stream.
func packFile(w *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s in the OCI layout is not a regular file", name)
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size()}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
