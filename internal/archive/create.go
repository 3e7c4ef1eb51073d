package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// replacing calls make, which creates base in parent; if that name is taken,
// once more after what has it is gone.
func (a *applier) replacing(parent *dir, base string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := a.clear(parent, base); err != nil {
		return err
	}
	return make()
}

// clear removes what is at base in parent, a directory with all it has.
func (a *applier) clear(parent *dir, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
		if a.o.Copy && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("there is a directory of that name: %w", errdefs.ErrFailedPrecondition)
		}
		if err := a.forget(); err != nil {
			return err
		}
	}
	return removeTree(a.ctx, parent.fd, base, 1)
}

func tooLarge(size int64) error {
	return fmt.Errorf("its %d bytes exceed what a layer may have: %w", size, errdefs.ErrResourceExhausted)
}

func (a *applier) file(parent *dir, base string, at attributes, h *tar.Header, content io.Reader) (err error) {
	if h.Size > a.left {
		return tooLarge(h.Size)
	}
	var fd int
	err = a.replacing(parent, base, func() (err error) {
		const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err = unix.Openat(parent.fd, base, flags, 0o600)
		return os.NewSyscallError("openat", err)
	})
	if err != nil {
		return err
	}
	err = a.fill(fd, h, content)
	if err == nil {
		err = a.setByFD(fd, at)
	}
	if err == nil {
		err = setTimes(parent, base, at)
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

// sparseFrom is how large a file is, in bytes, in which zeros become holes: most
// that are large and have many were sparse where the layer was made, and a tar
// seldom tells.
const sparseFrom = 1 << 20

// fill copies content into a new file. Only where the tar says that there may
// be holes, or where they are worth it, it looks for them.
func (a *applier) fill(fd int, h *tar.Header, content io.Reader) error {
	holes := h.Size >= sparseFrom || h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != ""
	if holes {
		// Gives the file its size, and lets the file system refuse it.
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return os.NewSyscallError("ftruncate", err)
		}
	}
	var done int64
	for {
		n, err := content.Read(a.buf)
		a.left -= int64(n)
		if !holes {
			if err := writeAll(fd, a.buf[:n], -1); err != nil {
				return err
			}
		} else if err := writeBlocks(fd, a.buf[:n], done); err != nil {
			return err
		}
		done += int64(n)
		if err == io.EOF {
			break
		}
		if err == io.ErrUnexpectedEOF {
			return errCut
		}
		if err != nil {
			return invalid("read its content: %v", err)
		}
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
	}
	if done != h.Size {
		return invalid("it has %d bytes of %d", done, h.Size)
	}
	return nil
}

var zeros [16 << 10]byte

// writeBlocks writes the parts of p that are not zero, p being at offset at.
func writeBlocks(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		// As much as is not zero, in one call.
		full := 0
		for full < len(p) {
			part := p[full:min(len(p), full+len(zeros))]
			if bytes.Equal(part, zeros[:len(part)]) {
				break
			}
			full += len(part)
		}
		if full > 0 {
			if err := writeAll(fd, p[:full], at); err != nil {
				return err
			}
		}
		skip := min(len(p), full+len(zeros)) // what is there, and the zeros behind it
		at += int64(skip)
		p = p[skip:]
	}
	return nil
}

// writeAll writes p at an offset, or at the end if that is negative.
func writeAll(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		var n int
		var err error
		if at < 0 {
			n, err = unix.Write(fd, p)
		} else {
			n, err = unix.Pwrite(fd, p, at)
			at += int64(max(n, 0))
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		p = p[n:]
	}
	return nil
}

// directory makes a directory, or gives one that is there its attributes.
func (a *applier) directory(parent *dir, name, base string, at attributes) (err error) {
	replaced, kept := false, false
	err = unix.Mkdirat(parent.fd, base, 0o700)
	if err == unix.EEXIST {
		kept = true
		var st unix.Stat_t
		if err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fstatat", err)
		}
		err = nil
		if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; a.o.Copy && !isDir {
			return fmt.Errorf("there is a file of that name, which is no directory: %w", errdefs.ErrFailedPrecondition)
		} else if !isDir {
			replaced, kept = true, false
			err = a.clear(parent, base)
			if err == nil {
				err = unix.Mkdirat(parent.fd, base, 0o700)
			}
		}
	}
	if err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	if a.o.Copy && kept {
		return nil
	}
	d, err := a.child(parent, name, base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open.release(d)) }()
	if replaced { // what was here hid what is below
		if err := a.markOpaque(d); err != nil {
			return err
		}
	}
	if kept {
		if err := a.dropXattrs(d.fd, at); err != nil {
			return err
		}
	}
	return a.setDir(d, at)
}

// child opens the directory base of parent, which is known as name.
func (a *applier) child(parent *dir, name, base string) (*dir, error) {
	fd, err := unix.Openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return a.open.add(name, fd)
}

// rootEntry gives the root its attributes.
func (a *applier) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return invalid("it would replace the root directory")
	}
	at, err := a.attributes(h)
	if err != nil {
		return err
	}
	if err := a.dropXattrs(a.open.root.fd, at); err != nil {
		return err
	}
	return a.setDir(a.open.root, at)
}

func (a *applier) symlink(parent *dir, base, target string, at attributes) error {
	if target == "" || len(target) > maxName || strings.IndexByte(target, 0) >= 0 {
		return invalid("symbolic link with target %q", shorten(target))
	}
	err := a.replacing(parent, base, func() error {
		return os.NewSyscallError("symlinkat", unix.Symlinkat(target, parent.fd, base))
	})
	if err != nil {
		return err
	}
	return a.setByName(parent, base, at, false)
}

// node makes a device or a fifo.
func (a *applier) node(parent *dir, base string, at attributes, h *tar.Header) error {
	kind, ok := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if !ok || h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return invalid("device number %d:%d", h.Devmajor, h.Devminor)
	}
	number := 0
	if h.Typeflag != tar.TypeFifo {
		number = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	err := a.replacing(parent, base, func() error {
		return os.NewSyscallError("mknodat", unix.Mknodat(parent.fd, base, kind|0o600, number))
	})
	if a.o.UserNS && errors.Is(err, unix.EPERM) {
		return nil // the container is given its devices by other means
	}
	if err != nil {
		return err
	}
	return a.setByName(parent, base, at, true)
}

// hardlink gives another name to a file. Its owner, mode and so on are those
// that the file has already: the header only repeats them.
func (a *applier) hardlink(parent *dir, base, link string) (err error) {
	target, err := clean(link)
	if err == nil && target == "" {
		err = invalid("the target is the root directory")
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(link), err)
	}
	at, file := split(target)
	from, err := a.linkable(at, file)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(link), err)
	}
	defer func() { err = errors.Join(err, a.open.release(from)) }()
	if same, err := sameFile(from, file, parent, base); same || err != nil {
		return err
	}
	err = a.replacing(parent, base, func() error {
		return os.NewSyscallError("linkat", unix.Linkat(from.fd, file, parent.fd, base, 0))
	})
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(link), err)
	}
	return nil
}

// sameFile tells whether two names are links of one file already.
func sameFile(a *dir, nameA string, b *dir, nameB string) (bool, error) {
	var x, y unix.Stat_t
	if err := unix.Fstatat(b.fd, nameB, &y, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, os.NewSyscallError("fstatat", err)
	}
	if err := unix.Fstatat(a.fd, nameA, &x, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, os.NewSyscallError("fstatat", err)
	}
	return inodeOf(&x) == inodeOf(&y), nil
}
