package runtime

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxImageFiles bounds how many files a checkpoint has: criu writes a handful for
// each process.
const maxImageFiles = 1 << 18

// packImages writes a directory of criu's images as a tar. Only its files count,
// in byte order, without times and owners: the same images make the same tar.
func packImages(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	out := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir():
			return nil
		case !e.Type().IsRegular():
			return fmt.Errorf("%s among the images is not a regular file", name)
		}
		return packFile(ctx, root, name, out)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func packFile(ctx context.Context, root *os.Root, name string, out *tar.Writer) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: info.Size()}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if _, err := io.CopyN(out, stopping{ctx, f}, info.Size()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// unpackImages reads a tar of images into an empty directory. What is unpacked is
// at most as large as the tar, size; nothing gets outside of the directory, and
// anything but plain files is refused.
func unpackImages(ctx context.Context, r io.Reader, size int64, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	in := tar.NewReader(io.LimitReader(stopping{ctx, r}, size))
	for files := 0; ; files++ {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			if files == 0 {
				return fmt.Errorf("no images in it: %w", errdefs.ErrInvalidArgument)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%v: %w", err, kindOf(ctx))
		}
		if files == maxImageFiles {
			return fmt.Errorf("more than %d files: %w", maxImageFiles, errdefs.ErrInvalidArgument)
		}
		written, err := unpackFile(ctx, root, header, in, size)
		if err != nil {
			return err
		}
		size -= written
	}
}

// kindOf is what a tar that can't be read on is: broken, or no more waited for.
func kindOf(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return errdefs.ErrInvalidArgument
}

func unpackFile(ctx context.Context, root *os.Root, header *tar.Header, in io.Reader, limit int64) (int64, error) {
	name := path.Clean(strings.TrimPrefix(header.Name, "./"))
	switch {
	case !filepath.IsLocal(name):
		return 0, fmt.Errorf("%q leads out of the checkpoint: %w", header.Name, errdefs.ErrInvalidArgument)
	case header.Typeflag == tar.TypeDir:
		return 0, root.MkdirAll(name, 0o700)
	case header.Typeflag != tar.TypeReg:
		return 0, fmt.Errorf("%q is neither a file nor a directory: %w", header.Name, errdefs.ErrInvalidArgument)
	case header.Size > limit: // a sparse file
		return 0, fmt.Errorf("%q is larger than the rest of the checkpoint: %w", header.Name, errdefs.ErrInvalidArgument)
	}
	err := root.MkdirAll(path.Dir(name), 0o700)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) {
		return 0, fmt.Errorf("%q is there twice, once as a directory: %w", header.Name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return 0, err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return 0, fmt.Errorf("%q is there twice: %w", header.Name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, in)
	if err != nil {
		return n, errors.Join(fmt.Errorf("%q: %v: %w", header.Name, err, kindOf(ctx)), f.Close())
	}
	return n, f.Close()
}

// stopping is a reader that ends with a context.
type stopping struct {
	ctx context.Context
	r   io.Reader
}

func (s stopping) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
