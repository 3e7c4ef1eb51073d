package activate

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

// bindLoop binds a file to a loop device and shows the device at point, by which
// it is found again when it is to go.
func bindLoop(m mount.Mount, point string) (device string, err error) {
	loop, err := mount.OpenLoop(m.Source, slices.Contains(m.Options, "ro"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, loop.Close()) }()
	f, err := os.OpenFile(point, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	if err := unix.Mount(loop.Name(), point, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("show loop device %s at %q: %w", loop.Name(), point, err)
	}
	// Only from here on does it outlive this process: before, nothing would tell
	// the next one of it.
	return loop.Name(), mount.KeepLoop(loop)
}
