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
	tempTries  = 20 // to make them beside the sweeps of others
)

// WithTemp mounts mounts at a temporary directory, calls do with it, and takes
// everything away again, also when do panics. What a killed process leaves
// SweepTemp finds.
func WithTemp(ctx context.Context, mounts []Mount, do func(root string) error) (err error) {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	dir, hold, err := makeTemp()
	if err != nil {
		return fmt.Errorf("make a temporary mount point: %w", err)
	}
	defer hold.Close()
	defer func() { err = errors.Join(err, removeTemp(dir)) }()
	root := filepath.Join(dir, tempRoot)
	if err := All(mounts, root); err != nil {
		return err
	}
	return do(root)
}

// makeTemp makes the two directories and takes the lock that keeps them. The
// sweep of another process may take away what it finds before the lock: then
// there is another try.
func makeTemp() (dir string, hold *os.File, err error) {
	for range tempTries {
		if dir, err = os.MkdirTemp("", tempPrefix); err != nil {
			return "", nil, err
		}
		if hold, err = lockTemp(dir); err == nil {
			if err = os.Mkdir(filepath.Join(dir, tempRoot), 0o700); err == nil {
				return dir, hold, nil
			}
			hold.Close()
		}
		if failed := os.Remove(dir); failed != nil && !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return "", nil, err
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
	for _, path := range []string{root, dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
