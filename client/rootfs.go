package client

import (
	"context"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/runtime/spec"
)

// withRoot opens the root file system that mounts describe for reading. A plain
// directory is read where it is; anything else is mounted for the moment.
func withRoot(mounts []*types.Mount, do func(*spec.Root) error) error {
	open := func(path string) error {
		root, err := spec.OpenRoot(path)
		if err != nil {
			return err
		}
		defer root.Close()
		return do(root)
	}
	if len(mounts) == 0 {
		return do(nil)
	}
	if len(mounts) == 1 && mounts[0].GetType() == "bind" && mounts[0].GetTarget() == "" {
		return open(mounts[0].GetSource())
	}
	// Not ctx of a caller: to stop halfway would gain nothing, and what is
	// mounted is always unmounted.
	return mount.WithTemp(context.Background(), readonly(mounts), open)
}

// readonly turns mounts into such as can't be written through.
func readonly(mounts []*types.Mount) []mount.Mount { return mount.ReadOnly(mountsOf(mounts)) }
