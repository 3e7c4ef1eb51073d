package archive

import (
	"errors"
	"hash/maphash"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Names that mean something else than a file, see the OCI image spec, layer.md,
// "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh." // aufs's own files
	opaqueName     = ".wh..wh..opq"
)

// meaning is what a name stands for.
type meaning int

const (
	ordinary meaning = iota
	whiteout         // hides what its rest names
	opaque           // hides all that its directory has below
	plumbing         // left over from aufs: ignored
)

func classify(dir, base string) (meaning, error) {
	if dir != "" && strings.Contains(dir, whiteoutPrefix) {
		for step := range strings.SplitSeq(dir, "/") {
			if strings.HasPrefix(step, metaPrefix) {
				return plumbing, nil
			}
			if strings.HasPrefix(step, whiteoutPrefix) {
				return ordinary, invalid("%q is a whiteout, and no directory", shorten(step))
			}
		}
	}
	rest, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return ordinary, nil
	case base == opaqueName:
		return opaque, nil
	case strings.HasPrefix(base, metaPrefix):
		return plumbing, nil
	case rest == "" || rest == "." || rest == "..":
		return whiteout, invalid("whiteout of %q", rest)
	}
	return whiteout, nil
}

// mark stands for a name in a directory: the directory's inode and a hash of
// the name.
type mark struct{ dir, name uint64 }

// bring notes that base in parent is of this layer.
func (a *applier) bring(parent *dir, base string) {
	if a.brought != nil {
		a.brought[a.mark(parent.id, base)] = struct{}{}
	}
	if a.borrowed != nil {
		delete(a.borrowed, a.mark(parent.id, base))
	}
}

// borrow notes that base in parent is only copied up from below.
func (a *applier) borrow(parent *dir, base string) {
	if a.brought != nil {
		return
	}
	if a.borrowed == nil {
		a.borrowed = map[mark]struct{}{}
	}
	a.borrowed[a.mark(parent.id, base)] = struct{}{}
}

func (a *applier) mark(parent inode, base string) mark {
	return mark{parent.ino, maphash.String(a.seed, base)}
}

// isBrought tells whether base, found in the directory with inode parent, is of
// this layer.
func (a *applier) isBrought(parent inode, base string) bool {
	if a.brought != nil {
		_, ok := a.brought[a.mark(parent, base)]
		return ok
	}
	if a.borrowed != nil {
		_, ok := a.borrowed[a.mark(parent, base)]
		return !ok
	}
	return true
}

// allBrought tells whether everything there is of this layer, and no whiteout.
func (a *applier) allBrought() bool { return a.brought == nil && a.borrowed == nil && !a.whiteouts }

// whiteOut puts overlayfs's whiteout at base in parent.
func (a *applier) whiteOut(parent *dir, base string) error {
	parent.touched, a.whiteouts = true, true
	return os.NewSyscallError("mknodat", unix.Mknodat(parent.fd, base, unix.S_IFCHR, 0))
}

func isWhiteoutDevice(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (a *applier) isWhiteout(st *unix.Stat_t) bool {
	return a.o.Overlay && isWhiteoutDevice(st)
}

func (a *applier) opaqueName() string {
	if a.o.UserNS || a.o.UserXattr {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

// markOpaque makes overlayfs show nothing in d that is below it.
func (a *applier) markOpaque(d *dir) error {
	if !a.o.Overlay {
		return nil
	}
	return a.setOpaque(d.fd)
}

// hide does what the whiteout of base in the directory at asks for.
func (a *applier) hide(at, base string) (err error) {
	parent, err := a.hiding(at)
	if parent == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open.release(parent)) }()
	parent.touched = true
	left, err := a.takeOld(parent, base)
	if err != nil || !a.o.Overlay {
		return err
	}
	switch {
	case left == nil:
		need, err := a.isBelow(parent, base)
		if err != nil || !need {
			return err
		}
		return a.whiteOut(parent, base)
	case left.Mode&unix.S_IFMT == unix.S_IFDIR:
		return a.coverDir(parent, base)
	}
	return nil // a file or whiteout of this layer hides it already
}

// hiding gives the directory in which something is to be hidden; nil if there
// is no such directory.
func (a *applier) hiding(at string) (*dir, error) {
	if err := a.below.ready(); err != nil {
		return nil, err
	}
	unknown := a.o.Overlay && len(a.below.roots) == 0
	d, err := a.directoryAt(at, unknown)
	if errors.Is(err, errAbsent) || errors.Is(err, errNotDir) {
		return nil, nil
	}
	return d, err
}

// coverDir makes a directory of the upper one hide what it has below.
func (a *applier) coverDir(parent *dir, base string) (err error) {
	fd, err := openDir(parent.fd, base)
	if err != nil {
		return err
	}
	return errors.Join(a.setOpaque(fd), os.NewSyscallError("close", unix.Close(fd)))
}

func (a *applier) setOpaque(fd int) error {
	if err := a.dropShown(); err != nil {
		return err
	}
	return os.NewSyscallError("fsetxattr", unix.Fsetxattr(fd, a.opaqueName(), []byte("y"), 0))
}

// hideAll does what an opaque marker in the directory at asks for.
func (a *applier) hideAll(at string) (err error) {
	d, err := a.hiding(at)
	if d == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open.release(d)) }()
	if !a.allBrought() {
		d.touched = true
		if err := a.prune(d.fd, d.id, 0); err != nil {
			return err
		}
	}
	if d != a.open.root {
		return a.markOpaque(d)
	}
	return a.hideRoot()
}

// hideRoot hides all that is below the root. Overlayfs does not look whether a
// root is opaque, so each name is hidden by itself.
func (a *applier) hideRoot() error {
	root := a.open.root
	for _, fd := range a.below.roots {
		err := eachName(a.ctx, fd, func(base string) error {
			var st unix.Stat_t
			err := unix.Fstatat(root.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
			switch {
			case err == unix.ENOENT:
				need, err := a.isBelow(root, base)
				if err != nil || !need {
					return err
				}
				return a.whiteOut(root, base)
			case err != nil:
				return os.NewSyscallError("fstatat", err)
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				return a.coverDir(root, base)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
