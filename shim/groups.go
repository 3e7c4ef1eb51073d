package shim

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/runtime/record"
)

// maxConfig bounds what is read of a config.json, in bytes: as much as a message
// can bring.
const maxConfig = 16 << 20

// removeGroups removes the control groups of a bundle's container. An OCI
// runtime that was killed while it made the container has noted none of it yet:
// asked to delete it, it says that there is nothing.
func removeGroups(bundle string) error {
	f, err := os.Open(filepath.Join(bundle, record.ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxConfig)).Decode(&spec); err != nil {
		return nil // nor could the runtime make anything of it
	}
	return cgroup.Remove(spec.Linux.CgroupsPath)
}
