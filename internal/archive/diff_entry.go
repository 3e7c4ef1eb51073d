package archive

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Attributes of the machine and not of the file.
var hostXattrs = map[string]bool{"security.selinux": true, "security.ima": true, "security.evm": true, "security.SMACK64": true}

// same tells whether a name is the same in both trees. Of directories, what they
// have is not compared.
func (d *differ) same(p *pair) (bool, error) {
	a, b := p.upper, p.lower
	if b == nil {
		return false, nil
	}
	if inodeOf(a) == inodeOf(b) {
		return true, nil
	}
	kind := a.Mode & unix.S_IFMT
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim ||
		kind != unix.S_IFDIR && a.Size != b.Size || (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && a.Rdev != b.Rdev {
		return false, nil
	}
	x, _, err := xattrs(p.upDir, p.base)
	if err != nil {
		return false, err
	}
	y, _, err := xattrs(p.loDir, p.base)
	if err != nil || !maps.Equal(x, y) {
		return false, err
	}
	switch kind {
	case unix.S_IFREG:
		return d.sameContent(p)
	case unix.S_IFLNK:
		s, err := readlink(p.upDir, p.base)
		if err != nil {
			return false, err
		}
		t, err := readlink(p.loDir, p.base)
		return s == t, err
	}
	return true, nil
}

func (d *differ) sameContent(p *pair) (same bool, err error) {
	if p.upper.Size == 0 {
		return true, nil
	}
	a, err := openFile(p.upDir, p.base)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := openFile(p.loDir, p.base)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	for {
		if err := d.ctx.Err(); err != nil {
			return false, err
		}
		n, errA := io.ReadFull(a, d.buf)
		m, errB := io.ReadFull(b, d.other)
		if !bytes.Equal(d.buf[:n], d.other[:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if errA != nil || errB != nil { // both are at their end
			return true, nil
		}
	}
}

// openFile opens a regular file, and nothing that has taken its place.
func openFile(dir int, base string) (*os.File, error) {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), base)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it changed while the layer was made: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// entry writes anything but a directory.
func (d *differ) entry(n *folderNode, p *pair) (err error) {
	if err := d.ensure(n); err != nil {
		return err
	}
	name := n.join(p.base)
	h, _, err := d.header(name, p)
	if err != nil {
		return err
	}
	if p.upper.Nlink > 1 {
		if first, ok := d.links[inodeOf(p.upper)]; ok {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
			return d.tar.WriteHeader(h)
		}
		d.links[inodeOf(p.upper)] = h.Name
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return d.tar.WriteHeader(h)
	}
	f, err := openFile(p.upDir, p.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := d.tar.WriteHeader(h); err != nil {
		return err
	}
	return d.copy(f, h.Size)
}

// copy writes the first size bytes of a file. Those that come to it meanwhile are
// not of this layer.
func (d *differ) copy(f *os.File, size int64) error {
	for left := size; left > 0; {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(d.buf[:min(left, int64(len(d.buf)))])
		if err == io.EOF {
			return fmt.Errorf("it got shorter while it was read, by %d of %d bytes; pause what writes it: %w", left, size, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return err
		}
		if _, err := d.tar.Write(d.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// header describes an entry of upper, and tells whether overlayfs has marked it as a
// directory that hides what is below.
func (d *differ) header(name string, p *pair) (h *tar.Header, opaque bool, err error) {
	st := p.upper
	h = &tar.Header{
		Name: d.named(name), Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	if d.o.Owner != nil {
		h.Uid, h.Gid = d.o.Owner(h.Uid, h.Gid)
	}
	if !d.o.Epoch.IsZero() && h.ModTime.After(d.o.Epoch) {
		h.ModTime = d.o.Epoch
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlink(p.upDir, p.base); err != nil {
			return nil, false, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, false, fmt.Errorf("a file of mode %#o can't be in a layer: %w", st.Mode, errdefs.ErrFailedPrecondition)
	}
	all, marks, err := xattrs(p.upDir, p.base)
	if err != nil {
		return nil, false, err
	}
	for key, value := range all {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		switch key {
		case capability:
			value = d.capability(value)
		case accessACL, defaultACL:
			value = d.acl(value)
		}
		h.PAXRecords[xattrRecord+key] = value
	}
	return h, d.marks && marks["opaque"] == "y", nil
}

// capability gives a file capability that counts in a user namespace the form that
// counts wherever its root is the container's: that without a root. See
// linux/capability.h, struct vfs_ns_cap_data.
func (d *differ) capability(value string) string {
	const version3, size2, size3 = 3, 20, 24
	if d.o.Owner == nil || len(value) != size3 || value[3] != version3 {
		return value
	}
	if root, _ := d.o.Owner(int(binary.LittleEndian.Uint32([]byte(value[size2:]))), 0); root != 0 {
		return value
	}
	return value[:3] + "\x02" + value[4:size2]
}

// Attributes reads the extended attributes of the file at path, a link not followed,
// without those of the machine and of overlayfs, and tells whether overlayfs has it
// hide what is below.
func Attributes(path string) (all map[string]string, hides bool, err error) {
	all, marks, err := xattrs(unix.AT_FDCWD, path)
	return all, marks["opaque"] == "y", err
}

// xattrs reads the extended attributes of a file, a link not followed, and apart
// from them those by which overlayfs marks it, by the last part of their names.
func xattrs(dir int, base string) (all, marks map[string]string, err error) {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("openat", err)
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd))) }()
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	list, err := sized(func(p []byte) (int, error) { return unix.Listxattr(self, p) })
	if err == unix.ENOTSUP {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("listxattr", err)
	}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if key == "" || hostXattrs[key] {
			continue
		}
		value, err := sized(func(p []byte) (int, error) { return unix.Getxattr(self, key, p) })
		if err == unix.ENODATA {
			continue // gone just now
		}
		if err != nil {
			return nil, nil, fmt.Errorf("extended attribute %q: %w", key, os.NewSyscallError("getxattr", err))
		}
		into := &all
		if reserved(key) {
			into, key = &marks, key[strings.LastIndexByte(key, '.')+1:]
		}
		if *into == nil {
			*into = map[string]string{}
		}
		(*into)[key] = string(value)
	}
	return all, marks, nil
}

// sized makes a call that fills a buffer, with one that is large enough.
func sized(call func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := call(buf)
		if err == unix.ERANGE {
			if n, err = call(nil); err == nil {
				buf = make([]byte, n+256)
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
