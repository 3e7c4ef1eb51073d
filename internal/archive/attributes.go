package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel takes, linux/limits.h.
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

const (
	xattrRecord = "SCHILY.xattr." // prefix of the PAX records with attributes
	capability  = "security.capability"
)

type xattr struct{ name, value string }

// attributes are what a header says of an entry besides its content.
type attributes struct {
	uid, gid int
	mode     uint32 // permissions, setuid, setgid, sticky
	times    [2]unix.Timespec
	xattrs   []xattr
}

func (a *applier) attributes(h *tar.Header) (attributes, error) {
	at := attributes{uid: h.Uid, gid: h.Gid, mode: uint32(h.Mode) & 0o7777}
	// 2^32-1 means "leave as it is" to the kernel.
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return at, invalid("owner %d:%d", h.Uid, h.Gid)
	}
	access := h.AccessTime
	if access.IsZero() {
		access = h.ModTime
	}
	at.times = [2]unix.Timespec{timespec(access), timespec(h.ModTime)}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || reserved(name) {
			continue
		}
		if name == "" || len(name) > maxXattrName || len(value) > maxXattrValue {
			return at, invalid("extended attribute %q of %d bytes", shorten(name), len(value))
		}
		at.xattrs = append(at.xattrs, xattr{name, value})
	}
	return at, nil
}

// reserved tells whether an attribute is overlayfs's own. A layer that could
// set one could redirect a directory, or hide and show what is below it.
func reserved(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// timespec keeps nanoseconds; the file system brings what it can't hold into
// its range.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// setByFD sets owner, mode and extended attributes, in this order: a change of
// owner takes setuid bits and capabilities away.
func (a *applier) setByFD(fd int, at attributes) error {
	if err := unix.Fchown(fd, at.uid, at.gid); err != nil {
		return fmt.Errorf("owner %d:%d: %w", at.uid, at.gid, os.NewSyscallError("fchown", err))
	}
	if err := unix.Fchmod(fd, at.mode); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	for _, x := range at.xattrs {
		err := unix.Fsetxattr(fd, x.name, []byte(x.value), 0)
		if err := a.tolerate(x.name, err, false); err != nil {
			return err
		}
	}
	return nil
}

// dropXattrs takes from a directory that stays the extended attributes that its
// entry does not have: those of the entry replace all there are (OCI image spec,
// layer.md, "Applying Changesets").
func (a *applier) dropXattrs(fd int, at attributes) error {
	list, err := sized(func(p []byte) (int, error) { return unix.Flistxattr(fd, p) })
	if err == unix.ENOTSUP {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		kept := name == "" || reserved(name) || hostXattrs[name] ||
			slices.ContainsFunc(at.xattrs, func(x xattr) bool { return x.name == name })
		if kept {
			continue
		}
		err := unix.Fremovexattr(fd, name)
		if err == nil || err == unix.ENODATA || a.o.UserNS && err == unix.EPERM {
			continue
		}
		return fmt.Errorf("remove extended attribute %q: %w", name, os.NewSyscallError("fremovexattr", err))
	}
	return nil
}

// setDir gives an open directory its attributes; the times wait until it is
// closed.
func (a *applier) setDir(d *dir, at attributes) error {
	d.times, d.touched = at.times, true
	return a.setByFD(d.fd, at)
}

// setByName does the same for what must not be opened: links, devices, fifos.
func (a *applier) setByName(parent *dir, base string, at attributes, chmod bool) error {
	fd, err := unix.Openat(parent.fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	err = a.setPath(fd, at, chmod)
	if err == nil {
		err = setTimes(parent, base, at)
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

func (a *applier) setPath(fd int, at attributes, chmod bool) error {
	if err := unix.Fchownat(fd, "", at.uid, at.gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("owner %d:%d: %w", at.uid, at.gid, os.NewSyscallError("fchownat", err))
	}
	// The name of a descriptor leads to the file itself, even if that is a link.
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	if chmod {
		if err := unix.Chmod(self, at.mode); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	for _, x := range at.xattrs {
		err := unix.Setxattr(self, x.name, []byte(x.value), 0)
		if err := a.tolerate(x.name, err, true); err != nil {
			return err
		}
	}
	return nil
}

// tolerate lets a refused attribute pass where that is the file system's
// nature: it has none of that kind. A capability is not let pass: the program
// would be there and not work.
func (a *applier) tolerate(name string, err error, special bool) error {
	switch {
	case err == nil:
		return nil
	case name == capability:
	case errors.Is(err, unix.ENOTSUP):
		return nil
	case errors.Is(err, unix.EPERM) && (a.o.UserNS || special && strings.HasPrefix(name, "user.")):
		return nil
	}
	return fmt.Errorf("extended attribute %q: %w", name, os.NewSyscallError("setxattr", err))
}

func setTimes(parent *dir, base string, at attributes) error {
	err := unix.UtimesNanoAt(parent.fd, base, at.times[:], unix.AT_SYMLINK_NOFOLLOW)
	return os.NewSyscallError("utimensat", err)
}
