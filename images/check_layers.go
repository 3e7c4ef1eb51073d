package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/metadata"
)

// compare unpacks each layer of a variant once more and compares the directories:
// whatever was lost, came in or changed since it was first unpacked shows.
func (c *checker) compare(ctx context.Context, ns, image, snapshotter string, v *Variant) error {
	chains, err := v.chains()
	if err != nil {
		return nil // it was unpacked by rules of its own
	}
	for i, chain := range chains {
		id := ns + "\x00" + snapshotter + "\x00" + chain
		if c.layers[id] {
			continue
		}
		c.layers[id] = true
		different, repaired, failed := "", "", error(nil)
		err := c.store.leased(ctx, metadata.Scope{Namespace: ns}, func(scope metadata.Scope) error {
			sn, err := c.store.DB.Snapshotter(scope, snapshotter)
			if err != nil {
				return err
			}
			return c.store.unpackAgain(ctx, scope, sn, v, i, func(key string, mounts []mount.Mount) error {
				if different, err = c.difference(ctx, sn, chain, key, mounts); err != nil || different == "" || !c.options.Repair {
					return err
				}
				if failed = sn.Replace(ctx, chain, key); failed == nil {
					repaired = "unpacked again"
				}
				return nil
			})
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errdefs.IsNotImplemented(err):
			return nil // nothing to look at
		case err != nil:
			c.report(ns, image, fmt.Sprintf("layer %d could not be compared with what %s has of it: %v", i+1, snapshotter, err), "", nil)
		case different != "":
			c.report(ns, image, fmt.Sprintf("layer %d differs from what %s has of it: %s", i+1, snapshotter, different), repaired, failed)
		}
		if c.ended {
			return nil
		}
	}
	return nil
}

// difference tells where a committed snapshot differs from one that was unpacked
// just now; "": nowhere. Unimplemented: they are no directories of this machine.
func (c *checker) difference(ctx context.Context, sn *metadata.Snapshots, chain, key string, fresh []mount.Mount) (_ string, err error) {
	view := "look " + key
	mounts, err := sn.View(ctx, view, chain, nil)
	if err != nil {
		return "", err
	}
	defer func() {
		undo, cancel := undoContext(ctx)
		defer cancel()
		err = errors.Join(err, sn.Remove(undo, view))
	}()
	lower, err := diff.LowerDirs(mounts)
	if err != nil || len(lower) == 0 {
		return "", fmt.Errorf("layers of this snapshotter can't be looked at: %w", errdefs.ErrNotImplemented)
	}
	upper := upperDir(fresh)
	if upper == "" {
		return "", fmt.Errorf("layers of this snapshotter can't be looked at: %w", errdefs.ErrNotImplemented)
	}
	t := &trees{ctx: ctx, buffers: [2][]byte{make([]byte, 64<<10), make([]byte, 64<<10)}}
	if err := t.same(lower[0], upper, "/"); err != nil {
		var found *differs
		if errors.As(err, &found) {
			return found.text, nil
		}
		return "", err
	}
	return "", nil
}

// upperDir is where what is written to a mount goes; "" if that is not one
// directory.
func upperDir(mounts []mount.Mount) string {
	if len(mounts) != 1 {
		return ""
	}
	if mounts[0].Type == "bind" {
		return mounts[0].Source
	}
	for _, option := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok && mounts[0].Type == "overlay" {
			return dir
		}
	}
	return ""
}

// differs is the first difference of two trees.
type differs struct{ text string }

func (d *differs) Error() string { return d.text }

func differ(format string, args ...any) error { return &differs{fmt.Sprintf(format, args...)} }

// trees compares two directory trees that nobody changes.
type trees struct {
	ctx     context.Context
	buffers [2][]byte
}

// same compares what is at two paths, which the layer knows as name.
func (t *trees) same(old, fresh, name string) error {
	a, err := os.Lstat(old)
	if errors.Is(err, fs.ErrNotExist) {
		return differ("%q is missing", name)
	}
	if err != nil {
		return err
	}
	b, err := os.Lstat(fresh)
	if err != nil {
		return err
	}
	sa, oka := a.Sys().(*syscall.Stat_t)
	sb, okb := b.Sys().(*syscall.Stat_t)
	switch {
	case !oka || !okb:
		return fmt.Errorf("%q can't be looked at", name)
	case a.Mode() != b.Mode():
		return differ("%q has the mode %s, and should have %s", name, a.Mode(), b.Mode())
	case sa.Uid != sb.Uid || sa.Gid != sb.Gid:
		return differ("%q belongs to %d:%d, and should to %d:%d", name, sa.Uid, sa.Gid, sb.Uid, sb.Gid)
	case sa.Rdev != sb.Rdev:
		return differ("%q is another device", name)
	case a.Mode().IsRegular() && a.Size() != b.Size():
		return differ("%q has %d bytes, and should have %d", name, a.Size(), b.Size())
	}
	if err := sameAttributes(old, fresh, name); err != nil {
		return err
	}
	switch {
	case a.Mode().IsRegular():
		return t.bytes(old, fresh, name)
	case a.Mode()&fs.ModeSymlink != 0:
		x, err := os.Readlink(old)
		if err != nil {
			return err
		}
		if y, err := os.Readlink(fresh); err != nil || x != y {
			return errors.Join(differ("%q links to %q, and should to %q", name, x, y), err)
		}
	case a.IsDir():
		return t.directory(old, fresh, name)
	}
	return nil
}

// sameAttributes compares the extended attributes of two files, access control lists
// among them, and whether they hide what is below.
func sameAttributes(old, fresh, name string) error {
	have, hides, err := archive.Attributes(old)
	if err != nil {
		return err
	}
	want, should, err := archive.Attributes(fresh)
	switch {
	case err != nil:
		return err
	case !maps.Equal(have, want):
		return differ("%q has other extended attributes than it should", name)
	case hides != should:
		return differ("what is below %q is hidden: %t, and should be: %t", name, hides, should)
	}
	return nil
}

// directory compares what is in two directories.
func (t *trees) directory(old, fresh, name string) error {
	if err := context.Cause(t.ctx); err != nil {
		return err
	}
	have, err := os.ReadDir(old)
	if err != nil {
		return err
	}
	want, err := os.ReadDir(fresh)
	if err != nil {
		return err
	}
	wanted := make(map[string]bool, len(want))
	for _, entry := range want {
		wanted[entry.Name()] = true
	}
	for _, entry := range have {
		if !wanted[entry.Name()] {
			return differ("%q should not be there", filepath.Join(name, entry.Name()))
		}
	}
	for _, entry := range want {
		n := entry.Name()
		if err := t.same(filepath.Join(old, n), filepath.Join(fresh, n), filepath.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// bytes compares two files of the same size.
func (t *trees) bytes(old, fresh, name string) (err error) {
	a, err := os.OpenFile(old, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile(fresh, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	for {
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		n, aerr := io.ReadFull(a, t.buffers[0])
		m, berr := io.ReadFull(b, t.buffers[1])
		if !bytes.Equal(t.buffers[0][:n], t.buffers[1][:m]) {
			return differ("%q has other bytes than it should", name)
		}
		for _, err := range []error{aerr, berr} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
		}
		if aerr != nil || berr != nil {
			return nil
		}
	}
}
