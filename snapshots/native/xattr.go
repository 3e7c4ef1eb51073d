package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// holder is something with extended attributes: an open file, or, as links and
// devices can't be opened, a name in an open directory.
type holder struct {
	fd   int
	path string // if not empty, that instead; a link at its end is not followed
}

func opened(f *os.File) holder { return holder{fd: int(f.Fd())} }

func named(dir *os.File, name string) holder {
	return holder{path: filepath.Join(procPath(dir), name)}
}

func (h holder) list(buf []byte) (int, error) {
	if h.path != "" {
		return unix.Llistxattr(h.path, buf)
	}
	return unix.Flistxattr(h.fd, buf)
}

func (h holder) get(name string, buf []byte) (int, error) {
	if h.path != "" {
		return unix.Lgetxattr(h.path, name, buf)
	}
	return unix.Fgetxattr(h.fd, name, buf)
}

func (h holder) set(name string, value []byte) error {
	if h.path != "" {
		return unix.Lsetxattr(h.path, name, value, 0)
	}
	return unix.Fsetxattr(h.fd, name, value, 0)
}

// copyXattrs gives to the extended attributes of from.
func copyXattrs(from, to holder) error {
	names, err := sized(from.list)
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := sized(func(buf []byte) (int, error) { return from.get(name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = to.set(name, value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// sized calls read with a buffer that is large enough. What it reads is at most
// 64 KiB (XATTR_LIST_MAX, XATTR_SIZE_MAX).
func sized(read func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	n, err := read(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		n, err = read(buf)
	}
	return buf[:max(n, 0)], err
}
