// Command mkimage writes an image of busybox, for tests and the demo.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/berthd/berth/internal/testimage"
)

func main() {
	var (
		out         = flag.String("o", "", "file, or with -format oci-dir directory, to write")
		format      = flag.String("format", "oci", "oci, oci-dir or docker")
		compression = flag.String("compression", testimage.Gzip, "of the layers: gzip, zstd or none")
		name        = flag.String("name", "busybox:latest", "name of the image")
		busybox     = flag.String("busybox", testimage.BusyboxPath, "static busybox to put into it")
	)
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*out, *format, *compression, *name, *busybox); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func write(out, format, compression, name, busybox string) error {
	image, err := testimage.Busybox(name, busybox)
	if err != nil {
		return err
	}
	var files map[string][]byte
	switch format {
	case "docker":
		files, err = testimage.DockerFiles(compression, image)
	case "oci", "oci-dir":
		layout, err := testimage.NewLayout(compression, image)
		if err != nil {
			return err
		}
		if format == "oci-dir" {
			return layout.WriteDir(out)
		}
		if files, err = layout.Files(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown format %q: use oci, oci-dir or docker", format)
	}
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	err = testimage.WriteFiles(w, files)
	return errors.Join(err, w.Flush(), f.Close())
}
