package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/snapshots"
)

const batch = 256 // directory entries read at a time

// copyTree makes the empty directory to the same as from: kinds, bytes and
// holes, owners, modes, times, extended attributes and hardlinks. It works by
// open handles and follows no link.
func copyTree(ctx context.Context, from, to string) error {
	src, err := openDir(unix.AT_FDCWD, from, from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openDir(unix.AT_FDCWD, to, to)
	if err != nil {
		return err
	}
	defer dst.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return pathError("stat", from, err)
	}
	c := copier{ctx: ctx, first: map[inode]string{}, root: dst}
	if err := c.entries(src, dst, ""); err != nil {
		return err
	}
	return c.attributes(src, dst, &st)
}

type inode struct{ dev, ino uint64 }

// copier copies one tree.
type copier struct {
	ctx   context.Context
	root  *os.File         // the copy's top
	first map[inode]string // path in the copy of a file with several names
	depth int
}

// entries copies what is in src to dst, whose path in the copy is path.
func (c *copier) entries(src, dst *os.File, path string) error {
	c.depth++
	defer func() { c.depth-- }()
	if c.depth > snapshots.MaxDepth {
		return fmt.Errorf("%s is more than %d directories deep: %w", c.root.Name(), snapshots.MaxDepth, errdefs.ErrResourceExhausted)
	}
	for {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		names, err := src.Readdirnames(batch)
		for _, name := range names {
			if err := c.entry(src, dst, name, filepath.Join(path, name)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *copier) entry(src, dst *os.File, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", filepath.Join(src.Name(), name), err)
	}
	kind := st.Mode & unix.S_IFMT
	if st.Nlink > 1 && kind != unix.S_IFDIR {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := c.first[id]; ok {
			err := unix.Linkat(int(c.root.Fd()), first, int(dst.Fd()), name, 0)
			return pathError("link", filepath.Join(dst.Name(), name), err)
		}
		c.first[id] = path
	}
	switch kind {
	case unix.S_IFDIR:
		return c.directory(src, dst, name, path, &st)
	case unix.S_IFREG:
		return c.file(src, dst, name, &st)
	case unix.S_IFLNK:
		target, err := readlink(src, name, st.Size)
		if err == nil {
			err = unix.Symlinkat(target, int(dst.Fd()), name)
		}
		if err != nil {
			return pathError("symlink", filepath.Join(dst.Name(), name), err)
		}
	default: // devices, fifos, sockets
		if err := unix.Mknodat(int(dst.Fd()), name, st.Mode, int(st.Rdev)); err != nil {
			return pathError("mknod", filepath.Join(dst.Name(), name), err)
		}
	}
	return c.special(src, dst, name, &st)
}

func (c *copier) directory(src, dst *os.File, name, path string, st *unix.Stat_t) error {
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return pathError("mkdir", filepath.Join(dst.Name(), name), err)
	}
	from, err := openDir(int(src.Fd()), name, filepath.Join(src.Name(), name))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openDir(int(dst.Fd()), name, filepath.Join(dst.Name(), name))
	if err != nil {
		return err
	}
	defer to.Close()
	if err := c.entries(from, to, path); err != nil {
		return err
	}
	return c.attributes(from, to, st)
}

func (c *copier) file(src, dst *os.File, name string, st *unix.Stat_t) error {
	from, err := openAt(int(src.Fd()), name, filepath.Join(src.Name(), name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openAt(int(dst.Fd()), name, filepath.Join(dst.Name(), name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	if err := c.bytes(from, to, st.Size); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", from.Name(), err), to.Close())
	}
	return errors.Join(c.attributes(from, to, st), to.Close())
}

// bytes copies the contents, holes as holes: as a reference to the same blocks
// where the file system can, else extent by extent.
func (c *copier) bytes(from, to *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	for off := int64(0); off < size; {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		start, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole to the end
		}
		end := size
		switch {
		case errors.Is(err, unix.EINVAL): // the file system tells no holes
			start = off
		case err != nil:
			return err
		default:
			if end, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE); err != nil {
				return err
			}
		}
		if err := c.extent(from, to, start, end-start); err != nil {
			return err
		}
		off = end
	}
	return to.Truncate(size)
}

// extent copies n bytes at off; io.Copy hands them to copy_file_range(2).
func (c *copier) extent(from, to *os.File, off, n int64) error {
	for _, f := range []*os.File{from, to} {
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			return err
		}
	}
	const step = 64 << 20 // between two looks at the context
	for n > 0 {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		m, err := io.CopyN(to, from, min(n, step))
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// attributes gives the copy of a file or directory what st and from have.
func (c *copier) attributes(from, to *os.File, st *unix.Stat_t) error {
	fd := int(to.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return pathError("chown", to.Name(), err)
	}
	// After the owner, whose change clears set-id bits.
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return pathError("chmod", to.Name(), err)
	}
	// Capabilities would not survive a change of the owner either.
	if err := copyXattrs(opened(from), opened(to)); err != nil {
		return pathError("copy extended attributes to", to.Name(), err)
	}
	return pathError("set times of", to.Name(), utimes(unix.AT_FDCWD, procPath(to), st, 0))
}

// special does the same for what can't be opened: links, devices, fifos.
func (c *copier) special(src, dst *os.File, name string, st *unix.Stat_t) error {
	path := filepath.Join(dst.Name(), name)
	fd := int(dst.Fd())
	if err := unix.Fchownat(fd, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("chown", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// It was just made here and is no link; links have no mode.
		if err := unix.Fchmodat(fd, name, st.Mode&0o7777, 0); err != nil {
			return pathError("chmod", path, err)
		}
	}
	if err := copyXattrs(named(src, name), named(dst, name)); err != nil {
		return pathError("copy extended attributes to", path, err)
	}
	return pathError("set times of", path, utimes(fd, name, st, unix.AT_SYMLINK_NOFOLLOW))
}

func utimes(fd int, name string, st *unix.Stat_t, flags int) error {
	return unix.UtimesNanoAt(fd, name, []unix.Timespec{st.Atim, st.Mtim}, flags)
}

func readlink(dir *os.File, name string, size int64) (string, error) {
	buf := make([]byte, max(size+1, unix.PathMax))
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	return string(buf[:max(n, 0)]), err
}

func openDir(at int, name, path string) (*os.File, error) {
	return openAt(at, name, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

func openAt(at int, name, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// procPath leads to what is open as f.
func procPath(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}
