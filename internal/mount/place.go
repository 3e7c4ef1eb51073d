package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

var pageSize = os.Getpagesize()

// place is a mount point that was looked up: path leads to it and stays valid
// until close, whatever is renamed meanwhile.
type place struct {
	path string
	fd   int // -1 when path is a plain path
}

// locate finds sub within target, treating target as the root directory, so
// that neither links nor ".." lead out (openat2 with RESOLVE_IN_ROOT, since
// 5.6). An empty sub is target itself.
func locate(target, sub string) (place, error) {
	if sub == "" {
		return place{path: target, fd: -1}, nil
	}
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return place{}, fmt.Errorf("open %q: %w", target, err)
	}
	defer unix.Close(root)
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(root, sub, &how)
		// A rename anywhere on the machine can interrupt a lookup with "..".
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return place{}, fmt.Errorf("find %q in %q: %w", sub, target, err)
		}
		return place{path: "/proc/self/fd/" + strconv.Itoa(fd), fd: fd}, nil
	}
}

// name gives the path in words, as far as it can be known.
func (p place) name() string {
	if p.fd < 0 {
		return p.path
	}
	if name, err := os.Readlink(p.path); err == nil {
		return name
	}
	return p.path
}

func (p place) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}
