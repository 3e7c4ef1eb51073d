package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tempPrefix starts the name of every temporary directory of WithTemp. In it
// is the mount point, tempRoot.
const (
	tempPrefix = "berth-mount-"
	tempRoot   = "root"
)

// WithTemp mounts mounts at a temporary directory, calls do with it, and takes
// everything away again, also when do panics. What a killed process leaves
// SweepTemp finds.
func WithTemp(ctx context.Context, mounts []Mount, do func(root string) error) (err error) {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", tempPrefix)
	if err != nil {
		return fmt.Errorf("make a temporary mount point: %w", err)
	}
	hold, err := lockTemp(dir)
	if err != nil {
		return errors.Join(fmt.Errorf("lock %q: %w", dir, err), os.Remove(dir))
	}
	defer hold.Close()
	root := filepath.Join(dir, tempRoot)
	defer func() { err = errors.Join(err, removeTemp(dir)) }()
	if err := os.Mkdir(root, 0o700); err != nil {
		return fmt.Errorf("make a temporary mount point: %w", err)
	}
	if err := All(mounts, root); err != nil {
		return err
	}
	return do(root)
}

// SweepTemp unmounts and removes what WithTemp of processes that are dead has
// left behind. It is for the start of a daemon.
func SweepTemp() error {
	var failed []error
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return fmt.Errorf("sweep temporary mounts: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		dir := filepath.Join(os.TempDir(), entry.Name())
		hold, err := lockTemp(dir)
		if err != nil {
			continue // its process lives, or it is none of ours
		}
		if err := removeTemp(dir); err != nil {
			failed = append(failed, fmt.Errorf("sweep temporary mounts: %w", err))
		}
		hold.Close()
	}
	return errors.Join(failed...)
}

// lockTemp takes the lock that says that dir is in use. It lasts until the file
// is closed or the process ends. A directory that somebody else made is
// refused: the place for temporary files is open to all.
func lockTemp(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = unix.EPERM
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeTemp takes away the mounts and the two directories. They are removed
// as empty ones only: should a mount be left, its files are safe.
func removeTemp(dir string) error {
	root := filepath.Join(dir, tempRoot)
	if err := UnmountAll(root); err != nil {
		return err
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Remove(dir)
}
