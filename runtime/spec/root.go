package spec

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxAccounts bounds, in bytes, what is read of a container's /etc/passwd or
// /etc/group.
const maxAccounts = 8 << 20

// Root is a container's root directory. Names are looked up in it as the
// container itself would: links and ".." stay inside.
type Root struct{ dir *os.File }

// OpenRoot opens the directory at path, which may be a link of /proc such as
// /proc/PID/root.
func OpenRoot(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root file system %q: %w", path, err)
	}
	return &Root{dir: os.NewFile(uintptr(fd), path)}, nil
}

// Close lets go of the directory.
func (r *Root) Close() error { return r.dir.Close() }

// ReadFile gives what is in a regular file of at most limit bytes. Anything
// else at name, which an image chose, is an error: a fifo would block, a device
// would act. A nil Root is an empty directory. Needs openat2 (since 5.6).
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	if r == nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOENT}
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(int(r.dir.Fd()), name, &how)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in the container is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s in the container is larger than %d bytes", name, limit)
	}
	return data, nil
}
