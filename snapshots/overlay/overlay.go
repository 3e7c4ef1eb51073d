// Package overlay owns the snapshot driver that stacks layers with the kernel's
// overlay file system: a snapshot is one directory with what changed, and its
// mounts name the directories of its ancestors as lower ones.
//
//	ROOT/snapshots/N/
//	├── fs/      the layer
//	└── work/    the kernel's working directory, of active snapshots
//
// Clients read upperdir= and lowerdir= of the mounts it gives, and apply layers
// straight to fs/. So a layer must never depend on the options it was written
// with: metacopy and redirect_dir are turned off wherever the kernel has them
// on by default. With the first, a file whose owner changed would be in the
// layer without its bytes; with the second, a renamed directory would be there
// as a mere reference to its old name.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// Labels that carry a container's id mapping, each CTR:HOST:SIZE[,...].
const (
	labelUIDMapping = "containerd.io/snapshot/uidmapping"
	labelGIDMapping = "containerd.io/snapshot/gidmapping"
	labelUpperDir   = "containerd.io/snapshot/overlay.upperdir"
	labelDiffID     = "containerd.io/snapshot/diff-id"  // on what a layer is unpacked into
	labelMaxSize    = "containerd.io/snapshot/max-size" // bytes, instead of Config.Quota
)

const (
	fsDir   = "fs"
	workDir = "work"
)

// Config describes a driver. Only Root is required.
type Config struct {
	Root string // everything of the driver is in there
	// Options end the mounts. nil: what this host needs (HostOptions).
	Options []string
	// UserXattr has the kernel keep its marks in user.overlay.*, where a user
	// namespace may read them. Layers made so don't fit mounts without it. Then
	// layers can't be made out of order, so the capability rebase is missing.
	UserXattr bool
	// Volatile has writable layers not flushed when they are unmounted (since
	// 5.10). A machine that goes down then leaves a layer that may be damaged,
	// whose mounts are refused from then on. Layers that become committed are
	// flushed all the same.
	Volatile bool
	// BootID tells this boot from every other. Volatile needs it.
	BootID string
	// UpperDir has Labels tell the directory of a writable layer.
	UpperDir bool
	// Quota is how many bytes one writable layer of a container may take; 0: any.
	// Ask ProbeQuota first whether it can be kept.
	Quota int64
	// Remap gives snapshots with an id mapping mounts that ask for an idmapped
	// mount, and reports the capability remap-ids. Whoever mounts must be able to
	// make them.
	Remap bool
}

// Driver implements snapshots.Driver.
type Driver struct {
	dirs    *snapshots.Dirs
	config  Config
	options []string
	remap   bool
}

var _ snapshots.Driver = (*Driver)(nil)

// Open opens the driver. Ask Probe first whether it can work.
func Open(c Config) (*Driver, error) {
	if err := checkRoot(c.Root); err != nil {
		return nil, err
	}
	dirs, err := snapshots.OpenDirs(c.Root)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	d := &Driver{dirs: dirs, config: c, options: c.Options, remap: c.Remap}
	if d.options == nil {
		d.options = HostOptions()
	}
	if c.UserXattr && !slices.Contains(d.options, "userxattr") {
		d.options = append(slices.Clone(d.options), "userxattr")
	}
	return d, nil
}

// Close lets go of the directory.
func (d *Driver) Close() error { return d.dirs.Close() }

// Root implements snapshots.Driver.
func (d *Driver) Root() string { return d.dirs.Root() }

// Capabilities implements snapshots.Driver.
func (d *Driver) Capabilities() []string {
	var all []string
	if d.remap {
		all = append(all, "remap-ids")
	}
	if !d.config.UserXattr {
		all = append(all, "rebase")
	}
	return all
}

// Create implements snapshots.Driver. The layer's root gets owner and mode of
// the nearest parent's; with an id mapping it belongs to the mapped root.
func (d *Driver) Create(ctx context.Context, id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) error {
	root := attributes{mode: 0o755}
	if len(parents) > 0 {
		var st unix.Stat_t
		path := d.fs(parents[0])
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("overlay: parent of snapshot %s: %w", id, &os.PathError{Op: "stat", Path: path, Err: err})
		}
		root = attributes{mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid)}
	}
	if d.remap {
		if err := root.remap(o.Labels); err != nil {
			return fmt.Errorf("overlay: snapshot %s: %w", id, err)
		}
	}
	var others []string
	if o.Kind == snapshots.Active {
		others = append(others, workDir)
	}
	limited := uint32(0)
	fill := func(dir string) (err error) {
		if err := d.dirs.Mkdirs(dir, o.Layer, fsDir, others...); err != nil {
			return err
		}
		if limited, err = d.limit(dir, id, o); err != nil {
			return err
		}
		return root.apply(filepath.Join(dir, fsDir))
	}
	err := d.dirs.Create(ctx, id, fill, append(others, fsDir)...)
	if err != nil && limited != 0 {
		err = errors.Join(err, d.lift(limited))
	}
	return err
}

// Mounts implements snapshots.Driver.
func (d *Driver) Mounts(id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) ([]mount.Mount, error) {
	options := d.mappings(o.Labels)
	switch {
	case o.Kind != snapshots.Active && o.Kind != snapshots.View:
		return nil, fmt.Errorf("overlay: mounts of a %s snapshot: %w", o.Kind, errdefs.ErrFailedPrecondition)
	case len(parents) == 0 && o.Kind == snapshots.Active:
		return bind(d.fs(id), append(options, "rw", "rbind")), nil
	case len(parents) == 0:
		return bind(d.fs(id), append(options, "ro", "rbind")), nil
	case len(parents) == 1 && o.Kind == snapshots.View:
		return bind(d.fs(parents[0]), append(options, "ro", "rbind")), nil
	}
	if o.Kind == snapshots.Active {
		options = append(options, "workdir="+filepath.Join(d.dirs.Path(id), workDir), "upperdir="+d.fs(id))
		if d.config.Volatile && !unpacked(o.Labels) {
			if err := d.allowVolatile(id); err != nil {
				return nil, fmt.Errorf("overlay: snapshot %s: %w", id, err)
			}
			options = append(options, "volatile")
		}
	}
	lower := make([]string, len(parents))
	for i, parent := range parents {
		lower[i] = d.fs(parent)
	}
	options = append(append(options, "lowerdir="+strings.Join(lower, ":")), d.options...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

func bind(source string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: options}}
}

// Flush implements snapshots.Driver. A limit stays, as it is not said that the
// snapshot becomes a layer; nothing is written into one.
func (d *Driver) Flush(_ context.Context, id snapshots.ID) error {
	if _, err := os.Lstat(d.fs(id)); err != nil {
		return fmt.Errorf("overlay: flush snapshot %s: %w", id, err)
	}
	if err := d.dirs.Flush(); err != nil {
		return fmt.Errorf("overlay: flush snapshot %s: %w", id, err)
	}
	return nil
}

// Remove implements snapshots.Driver. That a limit can't be taken off keeps no
// directory from going.
func (d *Driver) Remove(ctx context.Context, id snapshots.ID) error {
	err := d.unlimit(id)
	if err != nil {
		err = fmt.Errorf("overlay: take the limit off snapshot %s: %w", id, err)
	}
	return errors.Join(err, d.dirs.Remove(ctx, id))
}

// Usage implements snapshots.Driver.
func (d *Driver) Usage(ctx context.Context, id snapshots.ID) (snapshots.Usage, error) {
	return snapshots.Measure(ctx, d.fs(id))
}

// IDs implements snapshots.Driver.
func (d *Driver) IDs(ctx context.Context) iter.Seq2[snapshots.ID, error] {
	return d.dirs.IDs(ctx)
}

func (d *Driver) fs(id snapshots.ID) string { return filepath.Join(d.dirs.Path(id), fsDir) }

// mappings gives the options that ask for an idmapped mount.
func (d *Driver) mappings(labels map[string]string) []string {
	var options []string
	if !d.remap {
		return nil
	}
	for _, m := range []struct{ label, option string }{{labelUIDMapping, "uidmap="}, {labelGIDMapping, "gidmap="}} {
		if value := labels[m.label]; value != "" {
			options = append(options, m.option+value)
		}
	}
	return options
}

// attributes are owner and mode of the root of a layer.
type attributes struct {
	mode     uint32
	uid, gid int
}

// apply sets them: the mode last, as a change of the owner clears set-id bits.
func (a attributes) apply(path string) error {
	if a.uid != os.Geteuid() || a.gid != os.Getegid() {
		if err := os.Lchown(path, a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := unix.Chmod(path, a.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// remap makes the owner the one that the container's root maps to.
func (a *attributes) remap(labels map[string]string) error {
	for _, m := range []struct {
		label string
		id    *int
	}{{labelUIDMapping, &a.uid}, {labelGIDMapping, &a.gid}} {
		value := labels[m.label]
		if value == "" {
			continue
		}
		id, err := mappedRoot(value)
		if err != nil {
			return fmt.Errorf("label %s=%q: %w: %w", m.label, value, err, errdefs.ErrInvalidArgument)
		}
		*m.id = id
	}
	return nil
}

// mappedRoot finds what id 0 maps to in CTR:HOST:SIZE[,...].
func mappedRoot(mapping string) (int, error) {
	for part := range strings.SplitSeq(mapping, ",") {
		fields := strings.Split(part, ":")
		if len(fields) != 3 {
			return 0, fmt.Errorf("%q is not CTR:HOST:SIZE", part)
		}
		var n [3]uint64
		for i, field := range fields {
			var err error
			if n[i], err = strconv.ParseUint(field, 10, 32); err != nil {
				return 0, fmt.Errorf("%q: %w", part, err)
			}
		}
		if n[0] == 0 && n[2] > 0 {
			return int(n[1]), nil
		}
	}
	return 0, fmt.Errorf("id 0 is not mapped")
}
