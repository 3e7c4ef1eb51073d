package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

const (
	probeDir     = ".probe"
	probeTimeout = 10 * time.Second
)

// Installed tells whether the program is there that makes images. Without it
// there is nothing to probe. Unimplemented.
func Installed() error {
	if _, err := exec.LookPath(mkfs); err != nil {
		return fmt.Errorf("%s is not installed (package erofs-utils): %w", mkfs, errdefs.ErrNotImplemented)
	}
	return nil
}

// Probe tells why the driver can't work with root, or nil: it makes a small image
// with the marks of an overlay and mounts it, and an overlay on top.
// FailedPrecondition, with the reason; Unimplemented without the program.
func Probe(root string, options []string) (err error) {
	if err := Installed(); err != nil {
		return err
	}
	dir := filepath.Join(root, probeDir)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("erofs can't be used with %s: %w", root, err)
	}
	clean := func() error { return errors.Join(mount.UnmountAll(dir), os.RemoveAll(dir)) }
	if err := clean(); err != nil { // what a process that was killed has left
		return fmt.Errorf("erofs can't be used with %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, clean()) }()
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if err := try(ctx, dir, options); err != nil {
		return fmt.Errorf("erofs can't be used with %s: %w: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func try(ctx context.Context, dir string, options []string) error {
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"below/d", "above/d", "lower", "merged"} {
		if err := os.MkdirAll(path(name), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path("below/gone"), nil, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(path("below/d/hidden"), nil, 0o600); err != nil {
		return err
	}
	// The marks of a layer: they have to be in the image.
	if err := unix.Mknod(path("above/gone"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make a whiteout: %w", err)
	}
	if err := unix.Setxattr(path("above/d"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark a directory: %w", err)
	}
	if err := build(ctx, path("above"), path(image)); err != nil {
		return err
	}
	if err := mountImage(path(image), path("lower")); err != nil {
		return err
	}
	over := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{"lowerdir=" + path("lower") + ":" + path("below")}, options...)}
	if err := over.Do(path("merged")); err != nil {
		return err
	}
	for _, name := range []string{"merged/gone", "merged/d/hidden"} {
		if _, err := os.Lstat(path(name)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("what a layer hides shows (%s): %s does not keep overlay's marks", name, mkfs)
		}
	}
	return nil
}
