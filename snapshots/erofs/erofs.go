// Package erofs owns the snapshot driver whose layers are images of EROFS: files
// that are read-only for ever, one for each layer, and that the kernel can't be
// talked into changing. On top of them lies overlay.
//
//	ROOT/snapshots/N/
//	├── fs/, work/    of a writable snapshot: overlay's upper and working directory
//	├── layer.erofs   of a committed one: fs/ as it was, marks of overlay included
//	└── layer/        where the image is mounted while layers on top of it are in use
//
// The driver mounts the images itself, when something on top of them is to be
// mounted, so that its mounts are those of overlay, which every client can make.
// They go with the driver, with their layer, or with the boot; what was mounted on
// top of them stays.
package erofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/program"
	"github.com/berthd/berth/snapshots"
)

const (
	fsDir    = "fs"
	workDir  = "work"
	image    = "layer.erofs"
	newImage = "layer.new"
	layerDir = "layer"

	mkfs = "mkfs.erofs"
	// mkfsTimeout is how long it may take to make the image of one layer.
	mkfsTimeout = 30 * time.Minute
	magic       = 0xE0F5E1E2 // EROFS_SUPER_MAGIC_V1
)

// Driver implements snapshots.Driver.
type Driver struct {
	dirs    *snapshots.Dirs
	options []string // of overlay mounts

	// mu is held while an image is mounted: two that want the same would hide one
	// mount under the other. It guards mounted.
	mu      sync.Mutex
	mounted map[snapshots.ID]bool
}

var _ snapshots.Driver = (*Driver)(nil)

// Open opens the driver; everything of it is in root. options end overlay
// mounts. Ask Probe first whether it can work.
func Open(root string, options []string) (*Driver, error) {
	if strings.ContainsAny(root, `:,\`) {
		return nil, fmt.Errorf("erofs: root %q holds what separates mount options: %w", root, errdefs.ErrInvalidArgument)
	}
	dirs, err := snapshots.OpenDirs(root)
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return &Driver{dirs: dirs, options: options, mounted: map[snapshots.ID]bool{}}, nil
}

// Close unmounts the images, which nothing new is mounted on then.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for id := range d.mounted {
		errs = append(errs, mount.UnmountAll(d.path(id, layerDir)))
	}
	d.mounted = map[snapshots.ID]bool{}
	return errors.Join(append(errs, d.dirs.Close())...)
}

// Root implements snapshots.Driver.
func (d *Driver) Root() string { return d.dirs.Root() }

// Capabilities implements snapshots.Driver. There is no rebase: the directory of
// a layer goes when its image is used.
func (d *Driver) Capabilities() []string { return nil }

func (d *Driver) path(id snapshots.ID, name string) string {
	return filepath.Join(d.dirs.Path(id), name)
}

// Create implements snapshots.Driver. The root of a layer has owner and mode of
// the nearest parent's.
func (d *Driver) Create(ctx context.Context, id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	mode, uid, gid := uint32(0o755), os.Geteuid(), os.Getegid()
	if len(parents) > 0 {
		below, err := d.layers(parents[:1])
		if err != nil {
			return fmt.Errorf("erofs: parent of snapshot %s: %w", id, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(below[0], &st); err != nil {
			return fmt.Errorf("erofs: parent of snapshot %s: %w", id, &os.PathError{Op: "stat", Path: below[0], Err: err})
		}
		mode, uid, gid = st.Mode&0o7777, int(st.Uid), int(st.Gid)
	}
	var others []string
	if o.Kind == snapshots.Active {
		others = append(others, workDir)
	}
	fill := func(dir string) error {
		if err := d.dirs.Mkdirs(dir, o.Layer, fsDir, others...); err != nil {
			return err
		}
		root := filepath.Join(dir, fsDir)
		if err := os.Lchown(root, uid, gid); err != nil {
			return err
		}
		return os.NewSyscallError("chmod", unix.Chmod(root, mode))
	}
	return d.dirs.Create(ctx, id, fill, append(others, fsDir)...)
}

// Mounts implements snapshots.Driver. It mounts the images of the parents.
func (d *Driver) Mounts(id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) ([]mount.Mount, error) {
	if o.Kind != snapshots.Active && o.Kind != snapshots.View {
		return nil, fmt.Errorf("erofs: mounts of a %s snapshot: %w", o.Kind, errdefs.ErrFailedPrecondition)
	}
	lower, err := d.layers(parents)
	if err != nil {
		return nil, fmt.Errorf("erofs: snapshot %s: %w", id, err)
	}
	bind := func(source, access string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: source, Options: []string{access, "rbind"}}}
	}
	switch {
	case len(lower) == 0 && o.Kind == snapshots.Active:
		return bind(d.path(id, fsDir), "rw"), nil
	case len(lower) == 0:
		return bind(d.path(id, fsDir), "ro"), nil
	case len(lower) == 1 && o.Kind == snapshots.View:
		return bind(lower[0], "ro"), nil
	}
	var options []string
	if o.Kind == snapshots.Active {
		options = append(options, "workdir="+d.path(id, workDir), "upperdir="+d.path(id, fsDir))
	}
	options = append(append(options, "lowerdir="+strings.Join(lower, ":")), d.options...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

// layers mounts the images of committed snapshots and gives where.
func (d *Driver) layers(ids []snapshots.ID) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var dirs []string
	for _, id := range ids {
		dir := d.path(id, layerDir)
		if err := d.show(id, dir); err != nil {
			return nil, fmt.Errorf("layer %s: %w", id, err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// show mounts one image, unless it is mounted. Whose image something stands on is
// committed, so its directory is needed no more.
func (d *Driver) show(id snapshots.ID, dir string) error {
	if d.mounted[id] {
		return nil
	}
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if err == nil && uint32(st.Type) == magic { // by a process that was killed
		d.mounted[id] = true
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if _, err := os.Stat(d.path(id, image)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := mountImage(d.path(id, image), dir); err != nil {
		return err
	}
	d.mounted[id] = true
	for _, name := range []string{fsDir, workDir} {
		if err := os.RemoveAll(d.path(id, name)); err != nil {
			return err
		}
	}
	return nil
}

// mountImage mounts an image, by itself (since 6.12) or by a loop device.
func mountImage(file, dir string) error {
	m := mount.Mount{Type: "erofs", Source: file, Options: []string{"ro"}}
	err := m.Do(dir)
	if errors.Is(err, unix.ENOTBLK) {
		m.Options = append(m.Options, "loop")
		err = m.Do(dir)
	}
	return err
}

// Flush implements snapshots.Driver: it makes the image of the layer, which is on
// disk then. The layer itself need not be.
func (d *Driver) Flush(ctx context.Context, id snapshots.ID) error {
	if err := d.makeImage(ctx, id); err != nil {
		return fmt.Errorf("erofs: flush snapshot %s: %w", id, err)
	}
	return nil
}

func (d *Driver) makeImage(ctx context.Context, id snapshots.ID) (err error) {
	if _, err := os.Lstat(d.path(id, fsDir)); err != nil {
		return err
	}
	made := d.path(id, newImage)
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := build(ctx, d.path(id, fsDir), made); err != nil {
		return err
	}
	f, err := os.Open(made)
	if err == nil {
		err = errors.Join(durable.SyncFile("snapshots.flush", f), f.Close())
	}
	if err != nil {
		return err
	}
	return durable.Rename("snapshots.flush", made, d.path(id, image))
}

// build makes an image of a directory. Inodes are the large ones, which alone keep
// every file's own time; compressed, holes take no room, either.
func build(ctx context.Context, dir, file string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, mkfsTimeout, fmt.Errorf("it did not end within %s: %w", mkfsTimeout, context.DeadlineExceeded))
	defer cancel()
	cmd, words := program.Command(ctx, mkfs, []string{"-d0", "-Eforce-inode-extended", "-zlz4", file, dir}, nil)
	cmd.Stdout = words
	if err := cmd.Run(); err != nil {
		return program.Failed(ctx, mkfs, err, words)
	}
	return nil
}

// Remove implements snapshots.Driver.
func (d *Driver) Remove(ctx context.Context, id snapshots.ID) error {
	d.mu.Lock()
	delete(d.mounted, id)
	d.mu.Unlock()
	return d.dirs.Remove(ctx, id) // which unmounts
}

// Usage implements snapshots.Driver: of the image, once there is one.
func (d *Driver) Usage(ctx context.Context, id snapshots.ID) (snapshots.Usage, error) {
	var st unix.Stat_t
	err := unix.Lstat(d.path(id, image), &st)
	if errors.Is(err, unix.ENOENT) {
		return snapshots.Measure(ctx, d.path(id, fsDir))
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("erofs: usage of snapshot %s: %w", id, err)
	}
	return snapshots.Usage{Size: st.Blocks * 512, Inodes: 1}, nil
}

// IDs implements snapshots.Driver.
func (d *Driver) IDs(ctx context.Context) iter.Seq2[snapshots.ID, error] { return d.dirs.IDs(ctx) }

// Strays lists what is in the driver's directory and is no snapshot.
func (d *Driver) Strays(ctx context.Context) iter.Seq2[string, error] { return d.dirs.Strays(ctx) }

// RemoveStray removes what Strays has listed.
func (d *Driver) RemoveStray(ctx context.Context, name string) error {
	return d.dirs.RemoveStray(ctx, name)
}

// Intact tells what is missing of a snapshot.
func (d *Driver) Intact(_ context.Context, id snapshots.ID, kind snapshots.Kind) error {
	switch kind {
	case snapshots.Active:
		return d.dirs.Intact(id, fsDir, workDir)
	case snapshots.View:
		return d.dirs.Intact(id, fsDir)
	}
	_, err := os.Stat(d.path(id, image))
	return err
}
