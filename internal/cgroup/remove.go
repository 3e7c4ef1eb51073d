package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A group whose last process has just died stays busy for a moment.
const (
	busyTries = 20
	busyDelay = 10 * time.Millisecond
)

// Remove removes the groups that an OCI runtime makes for a path of a spec, in
// every hierarchy, with those below them. It is for what a runtime leaves that
// was killed before it had noted what it makes. Groups that are not there are no
// error, and a path that is not absolute, as with systemd, has none. A group with
// processes stays, and is an error.
func Remove(name string) error {
	if !path.IsAbs(name) || path.Clean(name) == "/" {
		return nil
	}
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	dirs := map[string]bool{} // one for controllers that are mounted together
	for _, at := range mounts {
		dirs[filepath.Join(at.dir, path.Clean(name))] = true
	}
	var failed []error
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if err := removeTree(dir); err != nil {
			failed = append(failed, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(failed...)
}

// removeTree removes a group and those below it. The files in a group are the
// kernel's and go with it.
func removeTree(dir string) error {
	var groups []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, group := range slices.Backward(groups) {
		if err := rmdir(group); err != nil {
			return err
		}
	}
	return nil
}

func rmdir(dir string) error {
	for try := 1; ; try++ {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || try == busyTries:
			return err
		}
		time.Sleep(busyDelay)
	}
}
