package cgroup

import (
	"bytes"
	"fmt"
	"path/filepath"
)

// Frozen tells whether the group was frozen, or is about to be. One that can't
// be is not.
func (g Group) Frozen() (bool, error) {
	path := filepath.Join(g.Unified, "cgroup.freeze")
	if g.Unified == "" {
		dir, ok := g.Controllers["freezer"]
		if !ok {
			return false, nil
		}
		path = filepath.Join(dir, "freezer.self_freezing")
	}
	data, err := readFile(path)
	if err != nil {
		return false, fmt.Errorf("frozen cgroup: %w", err)
	}
	return string(bytes.TrimSpace(data)) == "1", nil
}
