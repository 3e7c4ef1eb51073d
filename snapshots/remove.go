package snapshots

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

// removeTree removes a tree, however deep it is, with two open files: what a
// container nests must not use up the daemon's. It never removes anything
// through a mount. That the tree is gone already is no error.
func removeTree(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := mount.UnmountAll(dir); err != nil {
		return err
	}
	r := remover{top: dir}
	err := r.run()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// level is one directory on the way from the top to where the remover is.
type level struct {
	name string // in the level above
	id   inode
}

// remover goes down a tree and up again by "..", deleting as it goes. Nobody
// else works in the tree: it has lost its name, and is not mounted.
type remover struct {
	top  string
	fd   int // the directory it is in
	path []level
}

func (r *remover) run() (err error) {
	if r.fd, err = openNoMount(unix.AT_FDCWD, r.top); err != nil {
		return r.fail("open", err)
	}
	defer func() { unix.Close(r.fd) }()
	for {
		sub, err := r.empty()
		switch {
		case err != nil:
			return r.fail("empty", err)
		case sub != "":
			err = r.down(sub)
		case len(r.path) > 0:
			err = r.up()
		default:
			return r.fail("remove", os.Remove(r.top))
		}
		if err != nil {
			return r.fail("remove", err)
		}
	}
}

// empty deletes the entries of the directory that are not directories with
// something in them. It stops at the first such one and gives its name.
func (r *remover) empty() (sub string, err error) {
	// A handle of its own, as a directory is read from where it was left.
	fd, err := openNoMount(r.fd, ".")
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), r.top)
	defer f.Close()
	for seen := 0; ; {
		names, err := f.Readdirnames(16) // few: it often stops at one of them
		for _, name := range names {
			if full, err := r.entry(name); full || err != nil {
				return name, err
			}
		}
		seen += len(names)
		switch {
		case errors.Is(err, io.EOF) && seen == 0:
			return "", nil
		case errors.Is(err, io.EOF):
			// What is deleted while it is read may hide something else.
			seen = 0
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return "", err
		}
	}
}

// entry deletes one entry, unless it is a directory with something in it.
func (r *remover) entry(name string) (full bool, err error) {
	err = unix.Unlinkat(r.fd, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(r.fd, name, unix.AT_REMOVEDIR)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return true, nil
	}
	return false, fmt.Errorf("%q: %w", name, err)
}

// down goes into the subdirectory name.
func (r *remover) down(name string) error {
	here, err := identify(r.fd)
	if err != nil {
		return err
	}
	fd, err := openNoMount(r.fd, name)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	unix.Close(r.fd)
	r.fd = fd
	r.path = append(r.path, level{name, here})
	return nil
}

// up goes back and removes the directory it comes from, which is empty.
func (r *remover) up() error {
	last := r.path[len(r.path)-1]
	fd, err := openNoMount(r.fd, "..")
	if err != nil {
		return err
	}
	unix.Close(r.fd)
	r.fd = fd
	r.path = r.path[:len(r.path)-1]
	here, err := identify(fd)
	if err != nil {
		return err
	}
	if here != last.id {
		return fmt.Errorf("%q was moved while it was being removed: %w", last.name, unix.EBUSY)
	}
	return unix.Unlinkat(fd, last.name, unix.AT_REMOVEDIR)
}

func (r *remover) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: fmt.Sprintf("%s, %d directories down", r.top, len(r.path)), Err: err}
}

func identify(fd int) (inode, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return inode{uint64(st.Dev), st.Ino}, err
}

// openNoMount opens a directory that is no link and not the root of another
// mount (openat2, since 5.6; without it the mount table has to be enough).
func openNoMount(at int, name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC}
	if at != unix.AT_FDCWD {
		how.Resolve = unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS
	}
	for {
		fd, err := unix.Openat2(at, name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOSYS):
			return unix.Openat(at, name, int(how.Flags), 0)
		}
		return fd, err
	}
}
