package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/snapshots"
)

const (
	// marker is what the kernel leaves in the working directory of an overlay that
	// was mounted with volatile, and what makes it refuse the next mount.
	marker = "work/work/incompat/volatile"
	// bootFile says in which boot the mounts of a volatile layer were last given
	// out. It is not flushed: what a power cut leaves of it fits no boot.
	bootFile = "boot"
)

// unpacked tells whether a layer of an image is unpacked into a snapshot.
func unpacked(labels map[string]string) bool { return labels[labelDiffID] != "" }

// allowVolatile takes the kernel's marker away where it means nothing: in the
// boot in which the layer was mounted, all that was written is there, on disk or
// in memory. After that boot the layer may lack some of it.
func (d *Driver) allowVolatile(id snapshots.ID) error {
	dir := d.dirs.Path(id)
	mark := filepath.Join(dir, marker)
	_, err := os.Lstat(mark)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	marked := err == nil
	boot, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now := strings.TrimSpace(string(boot)) == d.config.BootID
	switch {
	case marked && !now:
		return fmt.Errorf("it was not flushed (volatile) before the machine was started anew, and may be damaged: remove the container and run it again; "+
			"or, if the machine was shut down in order, remove %s: %w", mark, errdefs.ErrFailedPrecondition)
	case marked:
		mounted, err := d.mounted(id)
		if err != nil || mounted {
			return err // the marker is that of a mount that is there
		}
		return os.RemoveAll(mark) // there is a file in it
	case !now:
		return durable.WriteVolatile("snapshots.volatile", filepath.Join(dir, bootFile), []byte(d.config.BootID), 0o600)
	}
	return nil
}

// mounted tells whether a layer is the upper directory of a mount.
func (d *Driver) mounted(id snapshots.ID) (bool, error) {
	upper := "upperdir=" + d.fs(id)
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		if i.FSType != "overlay" {
			return true, false
		}
		for option := range strings.SplitSeq(i.VFSOptions, ",") {
			if option == upper {
				return false, true
			}
		}
		return true, false
	})
	if err != nil {
		return false, fmt.Errorf("read the mount table: %w", err)
	}
	return len(infos) > 0, nil
}

// Labels gives what a driver tells of a snapshot in labels.
func (d *Driver) Labels(id snapshots.ID, kind snapshots.Kind) map[string]string {
	if !d.config.UpperDir || kind != snapshots.Active {
		return nil
	}
	return map[string]string{labelUpperDir: d.fs(id)}
}
