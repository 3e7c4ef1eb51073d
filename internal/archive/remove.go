package archive

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth is how many directories deep a tree may be that is removed: each level takes
// two or three open files. No name of a tar leads that deep by itself.
const maxDepth = 2048

var errDeep = invalid("more than %d directories deep", maxDepth)

// takeOld removes what earlier layers left at base in parent, and tells what
// stays there: something of this layer, or nil.
func (a *applier) takeOld(parent *dir, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("fstatat", err)
	}
	ours := a.isBrought(parent.id, base)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if ours || a.isWhiteout(&st) {
			return &st, nil
		}
		return nil, a.clear(parent, base)
	}
	if a.allBrought() {
		return &st, nil
	}
	if err := a.pruneAt(parent.fd, base, 1); err != nil {
		return nil, err
	}
	if ours {
		return &st, nil
	}
	return keptDir(&st, unix.Unlinkat(parent.fd, base, unix.AT_REMOVEDIR))
}

// keptDir reads the outcome of removing a directory that may not be empty.
func keptDir(st *unix.Stat_t, err error) (*unix.Stat_t, error) {
	switch err {
	case nil:
		return nil, nil
	case unix.ENOTEMPTY, unix.EEXIST:
		return st, nil
	}
	return nil, os.NewSyscallError("rmdir", err)
}

// pruneAt prunes the directory base of the directory open as at. depth counts from 1.
func (a *applier) pruneAt(at int, base string, depth int) error {
	if depth > maxDepth {
		return errDeep
	}
	fd, err := openDir(at, base)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = a.prune(fd, inodeOf(&st), depth)
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

// prune removes from a directory, and from those in it, everything that is not
// of this layer, and whiteouts, as nothing below will show there any more.
// Directories stay as long as they hold something.
func (a *applier) prune(fd int, id inode, depth int) error {
	if err := a.forget(); err != nil {
		return err
	}
	return eachName(a.ctx, fd, func(base string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fstatat", err)
		}
		ours := a.isBrought(id, base)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if ours && !a.isWhiteout(&st) {
				return nil
			}
			return os.NewSyscallError("unlinkat", unix.Unlinkat(fd, base, 0))
		}
		if err := a.pruneAt(fd, base, depth+1); err != nil || ours {
			return err
		}
		_, err := keptDir(&st, unix.Unlinkat(fd, base, unix.AT_REMOVEDIR))
		return err
	})
}

// removeTree removes base from the directory open as at, with all that is in
// it. It follows no link. depth counts from 1.
func removeTree(ctx context.Context, at int, base string, depth int) error {
	err := unix.Unlinkat(at, base, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR {
		return os.NewSyscallError("unlinkat", err)
	}
	if depth > maxDepth {
		return errDeep
	}
	fd, err := openDir(at, base)
	if err != nil {
		return err
	}
	err = eachName(ctx, fd, func(name string) error { return removeTree(ctx, fd, name, depth+1) })
	err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	if err != nil {
		return err
	}
	return os.NewSyscallError("rmdir", unix.Unlinkat(at, base, unix.AT_REMOVEDIR))
}

// eachName calls do for every name in the directory open as fd. do may remove
// it.
func eachName(ctx context.Context, fd int, do func(base string) error) (err error) {
	own, err := openDir(fd, ".")
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(own), "directory")
	defer func() { err = errors.Join(err, list.Close()) }()
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		names, err := list.Readdirnames(256)
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
	}
}

// isEmpty tells whether a directory holds nothing.
func isEmpty(fd int) (bool, error) {
	stop := errors.New("not empty")
	err := eachName(context.Background(), fd, func(string) error { return stop })
	if errors.Is(err, stop) {
		return false, nil
	}
	return err == nil, err
}
