package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const cgroupRoot = "/sys/fs/cgroup"

// JoinCgroup moves a process into a cgroup, which is named by its path below the
// root of the hierarchy and made if it is missing: the one hierarchy of version
// 2, or each hierarchy of version 1 that lets it be made.
func JoinCgroup(pid int, path string) error {
	path = filepath.Clean("/" + path)
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return joinHierarchy(cgroupRoot, pid, path)
	}
	hierarchies, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return fmt.Errorf("join cgroup %s: %w", path, err)
	}
	var errs []error
	joined := false
	for _, h := range hierarchies {
		root := filepath.Join(cgroupRoot, h.Name())
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // a link, or no hierarchy
		}
		if err := joinHierarchy(root, pid, path); err != nil {
			errs = append(errs, err)
			continue
		}
		joined = true
	}
	if joined {
		return nil
	}
	if len(errs) == 0 {
		return fmt.Errorf("join cgroup %s: no hierarchy is mounted at %s", path, cgroupRoot)
	}
	return errors.Join(errs...)
}

func joinHierarchy(root string, pid int, path string) error {
	dir := filepath.Join(root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("join cgroup %s: %w", path, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("join cgroup %s: %s is no cgroup hierarchy", path, root)
	}
	if err != nil {
		return fmt.Errorf("join cgroup %s: %w", path, err)
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("join cgroup %s: %w", path, err)
	}
	return nil
}
