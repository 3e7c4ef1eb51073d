package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// identity tells a file from every other, whatever its name. An inode's number is
// used again, so the time of its birth belongs to it where the file system knows.
type identity struct {
	inode uint64
	born  int64 // nanoseconds since 1970; 0: not known
}

// segment is an open file of a log.
type segment struct {
	*os.File
	identity
}

func identify(f *os.File) (identity, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return identity{}, err
	}
	var st unix.Statx_t
	cerr := conn.Control(func(fd uintptr) {
		err = unix.Statx(int(fd), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	if err := errors.Join(cerr, err); err != nil {
		return identity{}, fmt.Errorf("identify %s: %w", f.Name(), err)
	}
	id := identity{inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, nil
}

// open opens a file of a log; fs.ErrNotExist if there is none.
func (s *Store) open(dir, name string) (segment, error) {
	f, err := s.root.Open(path.Join(dir, name))
	if err != nil {
		return segment{}, err
	}
	id, err := identify(f)
	if err != nil {
		return segment{}, errors.Join(err, f.Close())
	}
	return segment{f, id}, nil
}

// segments opens all files of a log, the oldest first. They are looked at from the
// youngest on, so that a rotation in between shows one twice rather than hiding it.
func (s *Store) segments(dir string) (all []segment, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
			all = nil
		}
	}()
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		return nil, err
	}
	last := 0
	for _, e := range entries {
		if number, ok := strings.CutPrefix(e.Name(), File+"."); ok {
			if n, err := strconv.Atoi(number); err == nil && n <= maxFiles {
				last = max(last, n)
			}
		}
	}
	for i := range last + 2 { // one more, if they are being renamed
		name := File
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		one, err := s.open(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return all, err
		}
		if find(all, one.identity) >= 0 {
			_ = one.Close() // only read
			continue
		}
		all = append(all, one)
	}
	slices.Reverse(all)
	return all, nil
}

// find tells where a file is among others; -1: it is not.
func find(all []segment, id identity) int {
	return slices.IndexFunc(all, func(one segment) bool { return one.identity == id })
}

func closeAll(all []segment) {
	for _, one := range all {
		_ = one.Close() // only read
	}
}

// position is a place in a log.
type position struct {
	identity
	offset int64
}

// String is the position as clients get it.
func (p position) String() string {
	return strconv.FormatUint(p.inode, 36) + "." + strconv.FormatInt(p.born, 36) + "." + strconv.FormatInt(p.offset, 36)
}

// parsePosition reads what String wrote.
func parsePosition(text string) (p position, err error) {
	parts := strings.Split(text, ".")
	if len(parts) == 3 {
		var errs [3]error
		p.inode, errs[0] = strconv.ParseUint(parts[0], 36, 64)
		p.born, errs[1] = strconv.ParseInt(parts[1], 36, 64)
		p.offset, errs[2] = strconv.ParseInt(parts[2], 36, 64)
		if errors.Join(errs[:]...) == nil && p.offset >= 0 {
			return p, nil
		}
	}
	return p, fmt.Errorf("log position %q is none that was given: %w", text, errdefs.ErrInvalidArgument)
}
