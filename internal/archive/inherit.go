package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// inherit gives a new directory the attributes of the one below that it covers.
func (a *applier) inherit(d *dir, low *entry) (err error) {
	fd, err := openDir(low.dir, low.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd))) }()
	at, err := attributesOf(fd, &low.st)
	if err != nil {
		return err
	}
	return a.setDir(d, at)
}

// attributesOf reads back what attributes sets.
func attributesOf(fd int, st *unix.Stat_t) (attributes, error) {
	at := attributes{uid: int(st.Uid), gid: int(st.Gid), mode: st.Mode & 0o7777}
	at.times = [2]unix.Timespec{st.Atim, st.Mtim}
	names := make([]byte, maxXattrValue)
	n, err := unix.Flistxattr(fd, names)
	if err == unix.ENOTSUP {
		return at, nil
	}
	if err != nil {
		return at, os.NewSyscallError("flistxattr", err)
	}
	value := make([]byte, maxXattrValue)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" || reserved(name) {
			continue
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return at, fmt.Errorf("extended attribute %q: %w", name, os.NewSyscallError("fgetxattr", err))
		}
		at.xattrs = append(at.xattrs, xattr{name, string(value[:n])})
	}
	return at, nil
}

// copyUp makes base in d as the layers below have it: a file or a link.
func (a *applier) copyUp(d *dir, base string) (err error) {
	place, shows, err := a.showsBelow(d)
	if err != nil {
		return err
	}
	var low *entry
	if shows {
		if low, err = a.below.find(path.Join(place, base)); err != nil {
			return err
		}
	}
	if low == nil {
		return invalid("neither this layer nor one below has the target")
	}
	defer func() { err = errors.Join(err, low.close()) }()
	if err := a.copyEntry(d, base, low); err != nil {
		return err
	}
	a.borrow(d, base)
	return nil
}

// copyEntry makes base in d like low.
func (a *applier) copyEntry(d *dir, base string, low *entry) (err error) {
	d.touched = true
	switch low.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		from, err := unix.Openat(low.dir, low.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("openat", err)
		}
		return errors.Join(a.copyFile(d, base, from, low), os.NewSyscallError("close", unix.Close(from)))
	case unix.S_IFLNK:
		target, err := readlink(low.dir, low.base)
		if err != nil {
			return err
		}
		at := attributes{uid: int(low.st.Uid), gid: int(low.st.Gid), times: [2]unix.Timespec{low.st.Atim, low.st.Mtim}}
		return a.symlink(d, base, target, at)
	}
	return invalid("the target is in a layer below, and neither file nor link")
}

func (a *applier) copyFile(d *dir, base string, from int, low *entry) (err error) {
	if low.st.Size > a.left {
		return tooLarge(low.st.Size)
	}
	at, err := attributesOf(from, &low.st)
	if err != nil {
		return err
	}
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	to, err := unix.Openat(d.fd, base, flags, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(to))) }()
	if err := unix.Ftruncate(to, low.st.Size); err != nil {
		return os.NewSyscallError("ftruncate", err)
	}
	for done := int64(0); done < low.st.Size; {
		if err := context.Cause(a.ctx); err != nil {
			return err
		}
		n, err := unix.Read(from, a.buf[:min(low.st.Size-done, int64(len(a.buf)))])
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n == 0 {
			break
		}
		if err := writeBlocks(to, a.buf[:n], done); err != nil {
			return err
		}
		done += int64(n)
		a.left -= int64(n)
	}
	if err := a.setByFD(to, at); err != nil {
		return err
	}
	return setTimes(d, base, at)
}
