package mount

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moby/sys/mountinfo"
)

// Bounds of UnmountAll.
const (
	busyTries = 5                     // per mount, before it is detached
	busyDelay = 10 * time.Millisecond // before the second try; doubles
	maxPasses = 256                   // over the mount table; each takes one off every stack
)

// UnmountAll unmounts everything at and under target, deepest first, stacked
// mounts included. A mount that stays busy for about 300 ms is detached: it is
// gone from the tree at once, and from the kernel when its last user is. That
// nothing is mounted, or that target does not exist, is no error. A link at
// target is not followed.
func UnmountAll(target string) error {
	root, err := resolve(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount all under %q: %w", target, err)
	}
	if unmountPlain(root) {
		return nil
	}
	for range maxPasses {
		points, err := mountPoints(root)
		if err != nil {
			return fmt.Errorf("unmount all under %q: %w", target, err)
		}
		if len(points) == 0 {
			return nil
		}
		if err := unmountPass(root, points); err != nil {
			return fmt.Errorf("unmount all under %q: %w", target, err)
		}
	}
	return fmt.Errorf("unmount all under %q: still mounts there after %d passes: %w", target, maxPasses, unix.EBUSY)
}

// unmountPlain unmounts root where nothing is mounted below it and tells whether
// there is surely nothing left. This is the usual case, and it needs no look at
// the mount table, which has a line for each mount of the machine.
func unmountPlain(root string) bool {
	for range maxPasses {
		err := unix.Unmount(root, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			break // not a mount point, or not any more
		}
		if err != nil {
			return errors.Is(err, unix.ENOENT)
		}
	}
	dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer dir.Close()
	_, err = dir.Readdirnames(1)
	return errors.Is(err, io.EOF) // nothing can be mounted below an empty directory
}

// resolve makes target absolute and free of links, but for its last part.
func resolve(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return "", fmt.Errorf("that is the whole machine: %w", unix.EINVAL)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// Below lists what is mounted at root and below it.
func Below(root string) ([]string, error) {
	root, err := resolve(root)
	if err != nil {
		return nil, err
	}
	return mountPoints(root)
}

// mountPoints lists the paths at and under root that something is mounted on,
// deepest first.
func mountPoints(root string) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != root && !strings.HasPrefix(i.Mountpoint, root+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	points := make([]string, len(infos))
	for i, info := range infos {
		points[i] = info.Mountpoint
	}
	// A path sorts after those it lies in, so the reverse is deepest first.
	slices.Sort(points)
	slices.Reverse(points)
	return slices.Compact(points), nil
}

// unmountPass unmounts the topmost mount at each of points. One that another
// mount hides can't be reached yet: no error as long as something else went.
func unmountPass(root string, points []string) error {
	if err := seclude(root, points); err != nil {
		return err
	}
	var failed []error
	done := 0
	for _, point := range points {
		err := reachable(point)
		if err == nil {
			err = unmountOne(point)
		}
		switch {
		case err == nil:
			done++
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			failed = append(failed, fmt.Errorf("%q: %w", point, err))
		default:
			return fmt.Errorf("%q: %w", point, err)
		}
	}
	if done == 0 {
		// They may just have gone by themselves.
		left, err := mountPoints(root)
		if err != nil || len(left) == 0 {
			return err
		}
		return errors.Join(failed...)
	}
	return nil
}

// reachable refuses a path with a link in it. The mount table has no such
// paths, so the mount it speaks of is hidden by a later one, whose files (an
// image's, perhaps) have a link there that may lead to anybody's mount.
func reachable(point string) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, point, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOSYS) {
		return nil // before 5.6
	}
	if err != nil {
		return err
	}
	return unix.Close(fd) // an open handle would keep it busy
}

// seclude makes mounts with mounts below them private before those below are
// unmounted. A recursive bind of a shared tree would otherwise pass every
// unmount on to the tree it came from.
func seclude(root string, points []string) error {
	for _, point := range points {
		nested := slices.ContainsFunc(points, func(p string) bool { return strings.HasPrefix(p, point+"/") })
		if !nested {
			continue
		}
		err := reachable(point)
		if err == nil {
			err = unix.Mount("", point, "", unix.MS_PRIVATE, "")
		}
		// It went, or another mount hides it.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ELOOP) {
			return fmt.Errorf("make %q private: %w", point, err)
		}
	}
	return nil
}

// unmountOne unmounts the topmost mount at point; one that stays busy it
// detaches.
func unmountOne(point string) error {
	delay := busyDelay
	for range busyTries {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if !errors.Is(err, unix.EBUSY) {
			return os.NewSyscallError("umount", err)
		}
		time.Sleep(delay)
		delay *= 2
	}
	err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	return os.NewSyscallError("umount", err)
}
