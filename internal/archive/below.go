package archive

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// below are the directories under an upper one, as overlayfs stacks them.
// Nothing in them is changed.
type below struct {
	// wait gives the directories once something of them is asked for; nil if they
	// were given, or are known by now.
	wait   func() ([]string, error)
	failed error // of wait
	roots  []int // nearest first
	opaque string
}

// entry is something that shows below.
type entry struct {
	dir  int // the directory that has it
	base string
	st   unix.Stat_t
}

func (e *entry) close() error { return os.NewSyscallError("close", unix.Close(e.dir)) }

// openBelow opens what is below as o says, or leaves that for later.
func openBelow(o Options, opaque string) (*below, error) {
	b := &below{opaque: opaque, wait: o.WaitLower}
	if o.WaitLower != nil {
		return b, nil
	}
	if err := b.open(o.Lower); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *below) open(lower []string) error {
	for _, path := range lower {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open lower directory %q: %w", path, err)
		}
		b.roots = append(b.roots, fd)
	}
	return nil
}

// ready makes sure that the directories are known, and waits for them if need be.
func (b *below) ready() error {
	if b.wait == nil || b.failed != nil {
		return b.failed
	}
	lower, err := b.wait()
	if err == nil {
		err = b.open(lower)
	}
	if err != nil {
		b.failed = err
		return err
	}
	b.wait = nil
	return nil
}

// may tells whether there may be something below, and does not wait to know.
func (b *below) may() bool { return b.wait != nil || len(b.roots) > 0 }

func (b *below) close() error {
	if b == nil {
		return nil
	}
	return closeAll(b.roots)
}

func closeAll(fds []int) error {
	var failed error
	for _, fd := range fds {
		failed = errors.Join(failed, os.NewSyscallError("close", unix.Close(fd)))
	}
	return failed
}

// find tells what shows at place, a path without links; nil if nothing does.
func (b *below) find(place string) (*entry, error) {
	at, base := split(place)
	dirs, err := b.merged(at)
	if err != nil {
		return nil, err
	}
	found, err := lookIn(dirs, base)
	for i, fd := range dirs {
		if found == nil || i != found.dir {
			err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	if found != nil {
		found.dir = dirs[found.dir]
	}
	return found, err
}

// lookIn finds base in the first of dirs that has it. The dir of the entry is
// an index of dirs.
func lookIn(dirs []int, base string) (*entry, error) {
	for i, fd := range dirs {
		e := &entry{dir: i, base: base}
		err := unix.Fstatat(fd, base, &e.st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("fstatat", err)
		}
		if isWhiteoutDevice(&e.st) {
			return nil, nil
		}
		return e, nil
	}
	return nil, nil
}

// merged opens the directories that overlayfs would merge at place, nearest
// first; none if none shows there.
func (b *below) merged(place string) ([]int, error) {
	if err := b.ready(); err != nil {
		return nil, err
	}
	var dirs []int
	for _, root := range b.roots {
		fd, last, err := b.descend(root, place)
		if err != nil {
			return nil, errors.Join(err, closeAll(dirs))
		}
		if fd >= 0 {
			dirs = append(dirs, fd)
		}
		if last {
			break
		}
	}
	return dirs, nil
}

// descend opens place under one root, or returns -1 where that root has no such
// directory. last says that the roots after this one don't show there.
func (b *below) descend(root int, place string) (fd int, last bool, err error) {
	if fd, err = openDir(root, "."); err != nil {
		return -1, false, err
	}
	if place == "" {
		return fd, false, nil
	}
	for step := range strings.SplitSeq(place, "/") {
		next, err := openDir(fd, step)
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
		switch {
		case errors.Is(err, unix.ENOENT):
			return -1, last, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return -1, true, nil // a whiteout, or a file or link that hides all
		case err != nil:
			return -1, false, err
		}
		fd = next
		cut, err := hasXattr(fd, b.opaque)
		if err != nil {
			return -1, false, errors.Join(err, unix.Close(fd))
		}
		last = last || cut
	}
	return fd, last, nil
}

func openDir(at int, base string) (int, error) {
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("openat", err)
}

func hasXattr(fd int, name string) (bool, error) {
	var value [1]byte
	n, err := unix.Fgetxattr(fd, name, value[:])
	switch err {
	case nil:
		return n == 1 && value[0] == 'y', nil
	case unix.ENODATA, unix.ENOTSUP, unix.ERANGE:
		return false, nil
	}
	return false, os.NewSyscallError("fgetxattr", err)
}

// shown keeps the directories below that merge into the one looked at last:
// whiteouts come in crowds.
type shown struct {
	held bool
	dir  inode
	fds  []int
}

// isBelow tells whether base shows in parent because a layer below has it.
func (a *applier) isBelow(parent *dir, base string) (bool, error) {
	if err := a.below.ready(); err != nil {
		return false, err
	}
	if len(a.below.roots) == 0 {
		return true, nil // not known
	}
	if !a.shown.held || a.shown.dir != parent.id {
		if err := a.show(parent); err != nil {
			return false, err
		}
	}
	e, err := lookIn(a.shown.fds, base)
	return e != nil, err
}

// show fills a.shown for d.
func (a *applier) show(d *dir) error {
	if err := a.dropShown(); err != nil {
		return err
	}
	place, shows, err := a.showsBelow(d)
	if err != nil {
		return err
	}
	if shows {
		if a.shown.fds, err = a.below.merged(place); err != nil {
			return err
		}
	}
	a.shown.dir, a.shown.held = d.id, true
	return nil
}

func (a *applier) dropShown() error {
	old := a.shown.fds
	a.shown = shown{}
	return closeAll(old)
}

// showsBelow tells where d is, and whether what is below it there shows: that
// is, neither d nor a directory above it is opaque.
func (a *applier) showsBelow(d *dir) (place string, shows bool, err error) {
	if place, err = a.open.place(d); err != nil {
		return "", false, err
	}
	fd, cut, err := a.below.descend(a.open.root.fd, place)
	if err != nil || fd < 0 {
		return "", false, err
	}
	return place, !cut, os.NewSyscallError("close", unix.Close(fd))
}
