package cgroup

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Directories lists the directories that there are for a path of a spec, one for
// each hierarchy. A path that is not absolute, as with systemd, has none.
func Directories(name string) ([]string, error) {
	if !path.IsAbs(name) || path.Clean(name) == "/" {
		return nil, nil
	}
	mounts, err := hierarchies()
	if err != nil {
		return nil, err
	}
	dirs := map[string]bool{} // one for controllers that are mounted together
	for _, at := range mounts {
		dir := filepath.Join(at.dir, path.Clean(name))
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			dirs[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs)), nil
}
