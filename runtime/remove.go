package runtime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory and what is in it, and never leaves the file
// system it stands on: where something is mounted it stops with an error that
// names the place, having removed nothing behind it. That the directory is gone
// is no error.
//
// os.RemoveAll would walk into a root file system that is still mounted, and
// remove an image or a bind-mounted home directory.
func removeTree(dir string) error {
	// Somebody who had looked up the directory before it was renamed may still
	// make a file in it: a mark of an event, say.
	const tries = 10
	for try := 1; ; try++ {
		err := removeOnce(dir)
		if err == nil || !errors.Is(err, unix.ENOTEMPTY) || try == tries {
			return err
		}
	}
}

func removeOnce(dir string) error {
	root, err := openDir(unix.AT_FDCWD, dir, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	err = empty(root, dir)
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// openDir opens a directory. With RESOLVE_NO_XDEV it fails with EXDEV on a mount
// point (since 5.6).
func openDir(parent int, name string, resolve uint64) (*os.File, error) {
	for {
		fd, err := unix.Openat2(parent, name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: resolve,
		})
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// empty removes everything in an open directory; path is for errors.
func empty(dir *os.File, path string) error {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	for _, e := range entries {
		if err := removeEntry(dir, e, path+"/"+e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func removeEntry(dir *os.File, e os.DirEntry, path string) error {
	parent := int(dir.Fd())
	flags := 0
	if e.IsDir() {
		child, err := openDir(parent, e.Name(), unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_BENEATH)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("remove %s: something is mounted there: %w", path, unix.EBUSY)
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		err = empty(child, path)
		if cerr := child.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(parent, e.Name(), flags); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
