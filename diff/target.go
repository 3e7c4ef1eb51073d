package diff

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/mount"
)

// onto calls do with the directory that mounts lead to, and the form in which
// a layer has to be laid down there.
func onto(ctx context.Context, mounts []mount.Mount, do func(root string, form archive.Options) error) error {
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
				return do(upper, form)
			}
		}
	}
	return mount.WithTemp(ctx, mounts, func(root string) error { return do(root, form) })
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
