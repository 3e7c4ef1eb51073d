package metadata

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// To remove a row takes pages of the file: bbolt writes what changes to new
// ones. So that a full disk can be made room on, the file has blocks of its own
// ahead of the pages in use, which nobody else can take. When no more can be
// had, what makes the database larger is refused, and what is left is for
// removals (docs/adr/0030).

const (
	// maxReserve is how many bytes are set aside; of a small disk it is the
	// reserveShare'th part, at least minReserve.
	maxReserve   = 4 << 20
	minReserve   = 128 << 10
	reserveShare = 64
	// allowance is by how many bytes a transaction may grow a database whose disk
	// is full: a lease that is made to be deleted again, a label.
	allowance = 1 << 10
)

// reserve is the space set aside. Only the committer's goroutine uses it.
type reserve struct {
	path string
	file *os.File // of the database; nil: nothing can be set aside
	want int64    // bytes
	upTo int64    // end of what is set aside, in the file
	used int64    // end of the pages in use
	full error    // why there is less than wanted; nil while there is not
}

// newReserve looks how much is to be set aside in a file.
func newReserve(path string, file *os.File) *reserve {
	r := &reserve{path: path, file: file, want: maxReserve}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err == nil {
		r.want = max(minReserve, min(r.want, int64(fs.Blocks)*fs.Bsize/reserveShare))
	}
	return r
}

// keep sets space aside beyond the first used bytes, unless there is enough.
func (r *reserve) keep(used int64) {
	r.used = used
	if r.full != nil || r.upTo-used <= r.want/2 {
		r.extend(r.want)
	}
}

// extend sets so many bytes aside, or as many as there are.
func (r *reserve) extend(size int64) {
	if r.file == nil {
		return
	}
	r.full = nil
	for ; size >= int64(os.Getpagesize()); size /= 2 {
		err := allocate(r.file, r.used, size)
		if err == nil {
			r.upTo = r.used + size
			return
		}
		if !isFull(err) { // the file system can't: EOPNOTSUPP
			r.full, r.file = nil, nil
			return
		}
		r.full = err
	}
	r.upTo = r.used
}

// allocate gives a part of a file blocks of its own.
func allocate(f *os.File, from, size int64) error {
	for tries := 0; ; tries++ {
		err := unix.Fallocate(int(f.Fd()), 0, from, size)
		if !errors.Is(err, unix.EINTR) || tries == 10 {
			return err
		}
	}
}

// refuse is why a transaction that grows the database by so many bytes must
// not be made; nil if it may.
func (r *reserve) refuse(growth int64) error {
	if growth <= 0 || r.file == nil {
		return nil
	}
	// What changes is written anew with what it shares its pages with.
	if r.full == nil && r.upTo-r.used-2*growth <= r.want/2 {
		r.extend(r.want + 2*growth)
	}
	if r.full == nil || growth <= allowance && r.upTo-r.used > r.want/4 {
		return nil
	}
	return fmt.Errorf("the disk that holds %s is full; removals go on: make room there, or remove images and containers, and try again: %w: %w",
		filepath.Dir(r.path), r.full, errdefs.ErrResourceExhausted)
}

// isFull tells whether an error is that of a full disk, or of a quota.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
