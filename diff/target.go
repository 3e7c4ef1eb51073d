package diff

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/mount"
)

// onto calls do with the directory that mounts lead to, and the form in which
// a layer has to be laid down there. lower is that of Options.
func onto(ctx context.Context, mounts []mount.Mount, lower func() ([]string, error), do func(root string, form archive.Options) error) error {
	form := archive.Options{UserNS: userns.RunningInUserNS()}
	if len(mounts) == 1 && mounts[0].Target == "" {
		m := mounts[0]
		if slices.Contains(m.Options, "ro") {
			return fmt.Errorf("mount of %q is read-only: %w", m.Source, errdefs.ErrInvalidArgument)
		}
		if isBind(m) {
			if !filepath.IsAbs(m.Source) {
				return fmt.Errorf("source %q of a bind mount is not an absolute path: %w", m.Source, errdefs.ErrInvalidArgument)
			}
			if lower != nil {
				form.Overlay, form.WaitLower = true, lower
			}
			return do(m.Source, form)
		}
		// In a user namespace the kernel's rules for marks in an upper directory
		// depend on mount options; there the overlay itself has to make them.
		if m.Type == "overlay" && !form.UserNS {
			upper, lower, err := overlayDirs(m.Options)
			if err != nil {
				return err
			}
			if upper != "" {
				form.Overlay, form.Lower = true, lower
				form.UserXattr = slices.Contains(m.Options, "userxattr")
				return do(upper, form)
			}
		}
	}
	if lower != nil {
		return fmt.Errorf("what lies below was left for later, which goes with a bind mount alone: %w", errdefs.ErrInvalidArgument)
	}
	return mount.WithTemp(ctx, mounts, func(root string) error { return do(root, form) })
}

// LowerDirs gives the directories, nearest first, of what a layer that is laid
// down later will be above: those of the mounts of a view. InvalidArgument if
// they are neither a bind nor an overlay.
func LowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 || mounts[0].Target != "" {
		return nil, fmt.Errorf("%d mounts are not one layer upon the other: %w", len(mounts), errdefs.ErrInvalidArgument)
	}
	m := mounts[0]
	if m.Type == "bind" {
		return []string{m.Source}, nil
	}
	for _, option := range m.Options {
		if list, ok := strings.CutPrefix(option, "lowerdir="); ok && m.Type == "overlay" {
			return splitLower(list), nil
		}
	}
	return nil, fmt.Errorf("mount of type %q has no layers: %w", m.Type, errdefs.ErrInvalidArgument)
}

// InheritRoot gives the root directory of a layer the mode and owner of the one
// below it, as a layer has them that says nothing of its root.
func InheritRoot(upper, lower string) error {
	var st unix.Stat_t
	if err := unix.Lstat(lower, &st); err != nil {
		return &os.PathError{Op: "stat", Path: lower, Err: err}
	}
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: upper, Err: err}
	}
	return nil
}

// isBind tells whether m is a bind mount and nothing more than that.
func isBind(m mount.Mount) bool {
	bind := m.Type == "bind"
	for _, option := range m.Options {
		switch option {
		case "bind", "rbind":
			bind = true
		case "rw":
		default:
			return false
		}
	}
	return bind
}

// overlayDirs takes the directories out of overlay options, lower ones nearest
// first. No upper is returned where the options have what only the kernel can
// judge.
func overlayDirs(options []string) (upper string, lower []string, err error) {
	direct := true
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "upperdir":
			upper = value
		case "lowerdir":
			lower = splitLower(value)
		case "lowerdir+", "datadir+", "uidmap", "gidmap":
			direct = false
		case "metacopy", "redirect_dir":
			direct = direct && (value == "off" || value == "nofollow")
		}
	}
	if upper == "" {
		return "", nil, fmt.Errorf("overlay mount has no upperdir, so it is read-only: %w", errdefs.ErrInvalidArgument)
	}
	for _, dir := range append(lower, upper) {
		direct = direct && filepath.IsAbs(dir)
	}
	if !direct || len(lower) == 0 {
		return "", nil, nil
	}
	return upper, lower, nil
}

// splitLower cuts a list of lower directories at its colons. A backslash takes
// the meaning from the character after it.
func splitLower(list string) []string {
	var dirs []string
	var dir strings.Builder
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			dir.WriteByte(list[i])
		case list[i] == ':':
			dirs = append(dirs, dir.String())
			dir.Reset()
		default:
			dir.WriteByte(list[i])
		}
	}
	return append(dirs, dir.String())
}
