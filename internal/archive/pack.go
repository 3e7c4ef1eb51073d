package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Found is a place in a tree.
type Found struct {
	Name   string // from the root, without links and slashes at its ends; "" is the root
	Exists bool
	Mode   uint32 // as stat(2) has it
}

// IsDir tells whether there is a directory.
func (f Found) IsDir() bool { return f.Exists && f.Mode&unix.S_IFMT == unix.S_IFDIR }

// Find looks a name up in the tree root as a process would whose root directory it
// is: no link leads out. A link that name itself is, is followed if follow is set. A
// file that does not exist is no error, but a directory on the way is NotFound.
func Find(root, name string, follow bool) (f Found, err error) {
	top, err := openTop(root)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, unix.Close(top)) }()
	for range maxLinks {
		dir, base := lastOf(name)
		found, link, err := look(top, dir, base)
		if err != nil || link == "" || !follow {
			return found, err
		}
		if name = link; !strings.HasPrefix(link, "/") {
			name = dir + "/" + link
		}
	}
	return f, errLinks
}

// lastOf cuts the last component off a name; "." is one that is a directory for
// sure.
func lastOf(name string) (dir, base string) {
	cut := strings.TrimRight(name, "/")
	dir, base = split(cut)
	if cut != name || base == "" || base == "." || base == ".." {
		return name, "."
	}
	return dir, base
}

// look looks for base in dir, and gives the target if that is a link.
func look(top int, dir, base string) (f Found, link string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil {
		return f, "", os.NewSyscallError("fstat", err)
	}
	a := applier{open: &dirs{root: newDir(top, &st)}}
	if dir = strings.TrimLeft(dir, "/"); dir == "" {
		dir = "."
	}
	fd, err := a.lookup(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return f, "", fmt.Errorf("directory %q: %w", "/"+strings.TrimPrefix(dir, "."), errdefs.ErrNotFound)
	}
	if err != nil {
		return f, "", fmt.Errorf("directory %q: %w", "/"+dir, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.Fstat(fd, &st); err != nil {
		return f, "", os.NewSyscallError("fstat", err)
	}
	place := ""
	if inodeOf(&st) != a.open.root.id {
		if place, err = a.open.place(newDir(fd, &st)); err != nil {
			return f, "", err
		}
	}
	if f.Name = place; base != "." {
		f.Name = strings.TrimPrefix(place+"/"+base, "/")
	}
	err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return f, "", nil
	}
	if err != nil {
		return f, "", os.NewSyscallError("fstatat", err)
	}
	f.Exists, f.Mode = true, st.Mode
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		link, err = readlink(fd, base)
	}
	return f, link, err
}

// Pack writes to w a tar of what is at name in the tree root, a name that Find gave,
// where it is called as; without as, "", it has what is in a directory, and not the
// directory. Other than a layer it may have names that begin with ".wh.". Sockets, and
// what is in file systems that the kernel makes up, such as /proc, are left out.
// NotFound: there is nothing to keep at name.
func Pack(ctx context.Context, w io.Writer, root, name, as string, o DiffOptions) (err error) {
	d := &differ{ctx: ctx, o: o, tar: tar.NewWriter(w), links: map[inode]string{}, pack: true, as: as, lower: -1, upper: -1}
	d.buf = make([]byte, bufferSize)
	top, err := openTop(root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(top)) }()
	dir, base := split(name)
	if name == "" {
		base = "."
	}
	parent, err := openBeneath(top, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(parent)) }()
	p := &pair{base: base, upDir: parent, loDir: -1}
	if p.upper, err = d.look(parent, base); err == nil && p.upper == nil {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("%q: %w", "/"+name, err)
	}
	if err := d.packTop(p); err != nil {
		return fmt.Errorf("%q: %w", "/"+name, err)
	}
	return d.tar.Close()
}

func (d *differ) packTop(p *pair) (err error) {
	if !p.isDir() {
		return d.entry(&folderNode{written: true}, p)
	}
	if d.upper, err = openBeneath(p.upDir, p.base); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(d.upper)) }()
	if d.as != "" {
		h, _, err := d.header(p.base, p)
		if err != nil {
			return err
		}
		h.Name = d.as + "/"
		if err := d.tar.WriteHeader(h); err != nil {
			return err
		}
		d.as += "/"
	}
	return d.walk(&folderNode{written: true}, func(n *folderNode, p *pair) (*folderNode, error) {
		f, err := d.write(n, p)
		if f == nil || err != nil {
			return nil, err
		}
		made, err := madeUp(p.upDir, p.base)
		if made || err != nil {
			return nil, err
		}
		return f, nil
	})
}

// named gives the name in the tar of what is called name in upper.
func (d *differ) named(name string) string {
	switch {
	case d.as == "":
		return name
	case strings.HasSuffix(d.as, "/"):
		return d.as + name
	}
	return d.as
}

// openBeneath opens a directory to which no link leads.
func openBeneath(dir int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", name, os.NewSyscallError("openat2", err))
	}
	return fd, nil
}

// madeUp tells whether a directory is of a file system that is no place for files.
func madeUp(dir int, base string) (made bool, err error) {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("openat", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/self/fd/"+strconv.Itoa(fd), &st); err != nil {
		return false, os.NewSyscallError("statfs", err)
	}
	switch int64(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC:
		return true, nil
	}
	return false, nil
}
