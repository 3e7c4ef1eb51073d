package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

const batch = 256 // directory entries read at a time

// sectorSize is the unit of st_blocks, whatever the file system's own is.
const sectorSize = 512

// MaxDepth is how many directories deep a tree may be that is measured or
// copied: each level takes an open file. No path can name what lies below.
const MaxDepth = 2048

// Measure tells what the tree at dir takes on disk, dir itself included. Files
// that vanish meanwhile are passed over, links are not followed.
// ResourceExhausted: the tree is deeper than MaxDepth; what it tells then is the
// usage of the rest.
func Measure(ctx context.Context, dir string) (Usage, error) {
	m := measure{linked: map[inode]struct{}{}}
	f, err := os.Open(dir)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(int(f.Fd()), &st); err == nil {
			m.add(&st)
			err = m.walk(ctx, f)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	if m.deeper {
		return m.usage, fmt.Errorf("measure %s: more than %d directories deep: %w", dir, MaxDepth, errdefs.ErrResourceExhausted)
	}
	return m.usage, nil
}

type inode struct{ dev, ino uint64 }

// measure sums up a tree.
type measure struct {
	usage  Usage
	linked map[inode]struct{} // those with several names, seen once
	depth  int
	deeper bool // there is something that was not looked at
}

func (m *measure) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{uint64(st.Dev), st.Ino}
		if _, seen := m.linked[id]; seen {
			return
		}
		m.linked[id] = struct{}{}
	}
	m.usage.Inodes++
	m.usage.Size += st.Blocks * sectorSize
}

// walk adds what is in the directory f. It goes by handles, so that a tree
// that is in use can't lead it elsewhere.
func (m *measure) walk(ctx context.Context, f *os.File) error {
	m.depth++
	defer func() { m.depth-- }()
	if m.depth > MaxDepth {
		m.deeper = true
		return nil
	}
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		names, err := f.Readdirnames(batch)
		for _, name := range names {
			if err := m.entry(ctx, f, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (m *measure) entry(ctx context.Context, dir *os.File, name string) error {
	path := filepath.Join(dir.Name(), name)
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	m.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	sub := os.NewFile(uintptr(fd), path)
	defer sub.Close()
	return m.walk(ctx, sub)
}
