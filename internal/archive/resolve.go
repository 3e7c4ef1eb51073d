package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const maxLinks = 40 // symbolic links in one path, as the kernel has it

var (
	// errAbsent: neither this layer nor one below has the directory.
	errAbsent = fmt.Errorf("no such directory: %w", fs.ErrNotExist)
	errNotDir = invalid("not a directory")
	errLinks  = invalid("too many symbolic links")
)

// parent gives the directory called name, pinned, and makes it if it is
// missing.
func (a *applier) parent(name string) (*dir, error) { return a.directoryAt(name, true) }

// directoryAt gives the directory called name, pinned. If neither this layer
// nor one below has it, it is made, or that is errAbsent.
func (a *applier) directoryAt(name string, create bool) (*dir, error) {
	if d := a.open.find(name); d != nil {
		return d, nil
	}
	fd, err := a.lookup(name)
	switch {
	case err == nil:
		return a.open.add(name, fd)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		// Part of it is missing, or is only below.
		d, err := a.walk(name, create)
		if err != nil {
			return nil, fmt.Errorf("directory %q: %w", shorten(name), err)
		}
		return d, nil
	case errors.Is(err, unix.ELOOP):
		err = errLinks
	}
	return nil, fmt.Errorf("directory %q: %w", shorten(name), err)
}

// lookup opens a directory, the root being "/" for whatever links lead to.
func (a *applier) lookup(name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 1000 {
		fd, err := unix.Openat2(a.open.root.fd, name, &how)
		// A rename anywhere on the machine can interrupt a lookup with "..".
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return fd, os.NewSyscallError("openat2", err)
	}
	return -1, os.NewSyscallError("openat2", unix.EAGAIN)
}

// walk goes to a directory step by step, through what the upper directory
// shows together with those below it. A directory that is only below gets its
// place in the upper one. What is nowhere is made, or is errAbsent.
func (a *applier) walk(name string, create bool) (*dir, error) {
	w := walk{a: a, create: create, cur: a.open.find("")}
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		step := todo[0]
		todo = todo[1:]
		if step == "" || step == "." {
			continue
		}
		var link string
		var err error
		if step != ".." {
			link, err = w.down(step)
		}
		if err != nil {
			return nil, errors.Join(err, a.open.release(w.cur))
		}
		if step != ".." && link == "" {
			continue
		}
		// Start again from the root, with a path that has one link or ".." less.
		from := w.place
		if step == ".." {
			from, _ = split(from)
		} else if links++; links > maxLinks {
			return nil, errors.Join(errLinks, a.open.release(w.cur))
		}
		if strings.HasPrefix(link, "/") {
			from = ""
		}
		todo = append(strings.Split(from+"/"+link, "/"), todo...)
		if err := w.restart(); err != nil {
			return nil, err
		}
	}
	return w.cur, nil
}

// walk is a way from the root; every directory passed is a real one.
type walk struct {
	a      *applier
	create bool
	cur    *dir   // pinned
	place  string // of cur
	cut    bool   // cur or one above it is opaque: nothing below shows
}

func (w *walk) restart() error {
	old := w.cur
	w.cur, w.place, w.cut = w.a.open.find(""), "", false
	return w.a.open.release(old)
}

// down enters base, or returns the target of the link that it is.
func (w *walk) down(base string) (link string, err error) {
	place := path.Join(w.place, base)
	var st unix.Stat_t
	err = unix.Fstatat(w.cur.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return w.downBelow(place, base)
	case err != nil:
		return "", os.NewSyscallError("fstatat", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return "", w.enter(place, base)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return readlink(w.cur.fd, base)
	case !w.a.isWhiteout(&st):
		return "", fmt.Errorf("%q: %w", shorten(place), errNotDir)
	case !w.create:
		return "", errAbsent
	}
	// Hidden by this layer, and now brought by it: nothing below shows in it.
	w.cur.touched = true
	w.a.bring(w.cur, base)
	if err := unix.Unlinkat(w.cur.fd, base, 0); err != nil {
		return "", os.NewSyscallError("unlinkat", err)
	}
	if err := w.make(place, base); err != nil {
		return "", err
	}
	w.cut = true
	return "", w.a.markOpaque(w.cur)
}

// downBelow enters base, which the upper directory lacks.
func (w *walk) downBelow(place, base string) (link string, err error) {
	var low *entry
	if !w.cut {
		if low, err = w.a.below.find(place); err != nil {
			return "", err
		}
	}
	if low == nil {
		if !w.create {
			return "", errAbsent
		}
		w.a.bring(w.cur, base)
		return "", w.make(place, base)
	}
	defer func() { err = errors.Join(err, low.close()) }()
	switch low.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return readlink(low.dir, low.base)
	case unix.S_IFDIR:
		w.a.borrow(w.cur, base)
		if err := w.make(place, base); err != nil {
			return "", err
		}
		return "", w.a.inherit(w.cur, low)
	}
	return "", fmt.Errorf("%q: %w", shorten(place), errNotDir)
}

// make makes base and enters it.
func (w *walk) make(place, base string) error {
	w.cur.touched = true
	if err := unix.Mkdirat(w.cur.fd, base, 0o700); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	if err := w.enter(place, base); err != nil {
		return err
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(w.cur.fd, 0o755))
}

func (w *walk) enter(place, base string) error {
	d, err := w.a.child(w.cur, place, base)
	if err != nil {
		return err
	}
	old := w.cur
	w.cur, w.place = d, place
	if err := w.a.open.release(old); err != nil {
		return err
	}
	if w.a.below.may() && !w.cut {
		w.cut, err = hasXattr(d.fd, w.a.opaqueName())
	}
	return err
}

func readlink(dir int, base string) (string, error) {
	buf := make([]byte, maxName+1)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

// linkable gives the directory of a hard link's target, pinned. A target that
// is only in a layer below is copied up, as overlayfs would.
func (a *applier) linkable(at, base string) (*dir, error) {
	d, err := a.directoryAt(at, false)
	if errors.Is(err, errAbsent) || errors.Is(err, errNotDir) {
		return nil, invalid("neither this layer nor one below has the target")
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		err = a.copyUp(d, base)
	case err != nil:
		err = os.NewSyscallError("fstatat", err)
	case a.isWhiteout(&st):
		err = invalid("this layer has removed the target")
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = invalid("the target is a directory")
	}
	if err != nil {
		return nil, errors.Join(err, a.open.release(d))
	}
	return d, nil
}
