package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Thaw lets what is frozen in the group go on. With version 1 a frozen process
// can't even be killed. A group that can't be frozen, or is gone, is no error.
func (g Group) Thaw() error {
	path, word := filepath.Join(g.Unified, "cgroup.freeze"), "0"
	if g.Unified == "" {
		dir, ok := g.Controllers["freezer"]
		if !ok {
			return nil
		}
		path, word = filepath.Join(dir, "freezer.state"), "THAWED"
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	_, err = f.WriteString(word)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	return nil
}
