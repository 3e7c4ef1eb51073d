// Package activate owns mounts that take more than mount(2): templates that are
// filled in from what was mounted before, images of file systems and directories
// that are made on the way, and loop devices. It makes them in directories with
// numbers, and takes them away by number. It keeps no names and no labels: those
// are rows of package metadata.
//
//	STATE/mounts/
//	└── N/            an activation
//	    ├── 0/        the first of its mounts, or
//	    └── 1         a file that a loop device is bound to
//
// All of it is gone after a reboot, like the mounts themselves.
package activate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
)

const (
	// maxMounts bounds one activation.
	maxMounts = 1 << 9
	// DefaultMaxImage is the largest image of a file system that is made, in
	// bytes, where Place has no other.
	DefaultMaxImage = 1 << 40
	// DefaultTimeout is how long one program that makes a file system may take.
	DefaultTimeout = 2 * time.Minute
)

// Active is a mount that was made.
type Active struct {
	Mount mount.Mount // what was mounted, templates filled in
	Point string      // where
	At    time.Time
}

// Made is what an activation has come to.
type Made struct {
	Active []Active      // in the order in which they were made
	System []mount.Mount // left for the caller to mount
}

// Place is where activations are.
type Place struct {
	Root     string        // a directory of its own, below the daemon's state
	MaxImage int64         // bytes of an image that mkfs/ makes; 0: DefaultMaxImage
	Timeout  time.Duration // of a program that makes a file system; 0: DefaultTimeout
	// Roots are the directories below which mkfs/ may make images and mkdir/
	// directories, beside what the activation itself has mounted; none: all.
	Roots []string
}

// Needs tells whether any of mounts is one that a client can't make by itself.
func Needs(mounts []mount.Mount) bool { return lastNeedy(mounts) >= 0 }

// Make makes those of mounts that need it, and those before them, in the
// directory of id. After an error nothing of it is left. Unimplemented: no mount
// needs it, or one is of a sort that nobody knows. InvalidArgument,
// FailedPrecondition, ResourceExhausted.
func (p *Place) Make(ctx context.Context, id uint64, mounts []mount.Mount) (made Made, err error) {
	last := lastNeedy(mounts)
	switch {
	case last < 0:
		return made, fmt.Errorf("none of %d mounts needs a handler; mount them as they are: %w", len(mounts), errdefs.ErrNotImplemented)
	case len(mounts) > maxMounts:
		return made, fmt.Errorf("%d mounts, more than %d: %w", len(mounts), maxMounts, errdefs.ErrInvalidArgument)
	}
	dir := p.dir(id)
	if err := durable.MkdirAll("activate.make", p.Root, 0o711); err != nil {
		return made, err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			made = Made{}
			err = errors.Join(err, p.Remove(context.WithoutCancel(ctx), id))
		}
	}()
	for i, m := range mounts {
		if i > last {
			made.System = append(made.System, m)
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return made, err
		}
		ready, err := p.transform(ctx, m, made.Active)
		if err != nil {
			return made, fmt.Errorf("mount %d: %w", i, err)
		}
		// The last one that needed something is an ordinary mount by now, unless it
		// is a device: then the caller makes it, where it wants it.
		if i == last && ready.Type != typeLoop {
			made.System = append(made.System, ready)
			continue
		}
		active, err := p.attach(ready, filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return made, fmt.Errorf("mount %d: %w", i, err)
		}
		made.Active = append(made.Active, active)
	}
	return made, nil
}

// attach makes one mount at point.
func (p *Place) attach(m mount.Mount, point string) (Active, error) {
	active := Active{Mount: m, Point: point, At: time.Now()}
	if m.Type == typeLoop {
		device, err := bindLoop(m, point)
		if err != nil {
			return Active{}, err
		}
		active.Mount.Source = device
		return active, nil
	}
	if m.Target != "" {
		return Active{}, fmt.Errorf("target %q: a mount that others build on has none: %w", m.Target, errdefs.ErrInvalidArgument)
	}
	if err := os.Mkdir(point, 0o711); err != nil {
		return Active{}, err
	}
	return active, m.Do(point)
}

// Remove unmounts an activation, the last mount first, and removes its directory.
// That it is gone already is no error.
func (p *Place) Remove(_ context.Context, id uint64) error {
	dir := p.dir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove activation %d: %w", id, err)
	}
	highest := -1
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil || n < 0 {
			return fmt.Errorf("remove activation %d: there is %q in its directory, which is nothing of berth's; remove that: %w",
				id, entry.Name(), errdefs.ErrFailedPrecondition)
		}
		highest = max(highest, n)
	}
	for ; highest >= 0; highest-- {
		point := filepath.Join(dir, strconv.Itoa(highest))
		if err := mount.ClearLoop(point); err != nil {
			return fmt.Errorf("remove activation %d: %w", id, err)
		}
		if err := mount.UnmountAll(point); err != nil {
			return fmt.Errorf("remove activation %d: %w", id, err)
		}
		// As an empty one only: should a mount be left, its files are safe.
		if err := os.Remove(point); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove activation %d: %w", id, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove activation %d: %w", id, err)
	}
	return nil
}

// IDs lists the numbers of all activations that there is something of.
func (p *Place) IDs(context.Context) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		entries, err := os.ReadDir(p.Root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(0, fmt.Errorf("list activations: %w", err))
			return
		}
		for _, entry := range entries {
			n, err := strconv.ParseUint(entry.Name(), 10, 64)
			if err == nil && !yield(n, nil) {
				return
			}
		}
	}
}

func (p *Place) dir(id uint64) string { return filepath.Join(p.Root, strconv.FormatUint(id, 10)) }
