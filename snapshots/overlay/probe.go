package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

// probeDir is where Probe tries things out, within the driver's root.
const probeDir = ".probe"

// parameters is where the kernel shows the module's defaults.
const parameters = "/sys/module/overlay/parameters"

// Probe tells why the driver can't work with root, or nil: it makes root if
// need be, mounts a small overlay in it and changes it in the ways that layers
// depend on. FailedPrecondition, with the reason.
func Probe(root string) (err error) {
	if err := checkRoot(root); err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("overlay can't be used with %s: %w", root, err)
	}
	dir := filepath.Join(root, probeDir)
	// A process that was killed here may have left it, with the mount in it.
	if err := clean(dir); err != nil {
		return fmt.Errorf("overlay can't be used with %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, clean(dir)) }()
	if err := try(dir); err != nil {
		return fmt.Errorf("overlay can't be used with %s: %w: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// ProbeRemap tells why the driver can't show the files of layers with other owners,
// to containers with user namespaces, or nil: it mounts a small overlay so. Probe
// has to have succeeded. FailedPrecondition, with the reason.
func ProbeRemap(root string) (err error) {
	dir := filepath.Join(root, probeDir)
	if err := clean(dir); err != nil {
		return fmt.Errorf("owners can't be mapped in %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, clean(dir)) }()
	if err := tryRemap(dir); err != nil {
		return fmt.Errorf("owners can't be mapped in %s: %w: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// probedOwner is a user that the probe makes root of its overlay look like.
const probedOwner = 123456

func tryRemap(dir string) error {
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.MkdirAll(path(name), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path("lower/file"), nil, 0o600); err != nil {
		return err
	}
	mapping := fmt.Sprintf("map=0:%d:1", probedOwner)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"uid" + mapping, "gid" + mapping, "workdir=" + path("work"), "upperdir=" + path("upper"), "lowerdir=" + path("lower"),
	}, HostOptions()...)}
	if err := mountBriefly(m, path("merged")); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path("merged/file"), &st); err != nil {
		return err
	}
	if st.Uid != probedOwner || st.Gid != probedOwner {
		return fmt.Errorf("a file shows the owner %d:%d, and not %d", st.Uid, st.Gid, probedOwner)
	}
	return mount.UnmountAll(path("merged"))
}

func clean(dir string) error {
	if err := mount.UnmountAll(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// try mounts and changes an overlay in dir.
func try(dir string) error {
	path := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	for _, name := range []string{"one", "two", "upper", "work", "merged", "one/d"} {
		if err := os.MkdirAll(path(name), 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{"one/gone", "one/d/hidden", "two/seen"} {
		if err := os.WriteFile(path(name), nil, 0o600); err != nil {
			return err
		}
	}
	if err := directoryTypes(path("one")); err != nil {
		return err
	}
	// This mount fails, but it makes the kernel load its module, whose
	// parameters HostOptions looks at.
	_ = unix.Mount("overlay", path("merged"), "overlay", 0, "")
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"workdir=" + path("work"), "upperdir=" + path("upper"), "lowerdir=" + path("one") + ":" + path("two"),
	}, HostOptions()...)}
	if err := mountBriefly(m, path("merged")); err != nil {
		return err
	}
	if _, err := os.Stat(path("merged", "seen")); err != nil {
		return fmt.Errorf("a file of a lower layer does not show: %w", err)
	}
	if err := os.Remove(path("merged", "gone")); err != nil {
		return fmt.Errorf("remove a file of a lower layer: %w", err)
	}
	if err := os.RemoveAll(path("merged", "d")); err != nil {
		return fmt.Errorf("remove a directory of a lower layer: %w", err)
	}
	if err := os.Mkdir(path("merged", "d"), 0o700); err != nil {
		return fmt.Errorf("replace a directory of a lower layer: %w", err)
	}
	if _, err := os.Stat(path("merged", "d", "hidden")); err == nil {
		return errors.New("a directory can't be made opaque: the file system has no extended attributes for it")
	}
	var st unix.Stat_t
	if err := unix.Lstat(path("upper", "gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("a removed file leaves no whiteout")
	}
	return mount.UnmountAll(path("merged"))
}

// mountBriefly mounts what is not to last. An overlay that is unmounted flushes
// all that the file system of its upper directory has in memory, which may be
// much and whoever's; with volatile (since 5.10) it doesn't.
func mountBriefly(m mount.Mount, target string) error {
	brief := m
	brief.Options = append(slices.Clone(m.Options), "volatile")
	if brief.Do(target) == nil {
		return nil
	}
	return m.Do(target)
}

// directoryTypes checks that directory entries tell their type, without which
// whiteouts show (XFS made with ftype=0).
func directoryTypes(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := unix.Getdents(int(f.Fd()), buf)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	// struct linux_dirent64: reclen at 16, type at 18, name from 19 on.
	for buf = buf[:n]; len(buf) > 19; {
		length := int(buf[16]) | int(buf[17])<<8
		if length < 19 || length > len(buf) {
			return errors.New("read directory: malformed entry")
		}
		if buf[18] == unix.DT_UNKNOWN {
			return errors.New("its file system does not tell the type of directory entries (d_type); XFS needs ftype=1")
		}
		buf = buf[length:]
	}
	return nil
}

// checkRoot refuses a root whose name would be taken apart in mount options.
func checkRoot(root string) error {
	if !filepath.IsAbs(root) {
		return fmt.Errorf("overlay: root %q is not absolute: %w", root, errdefs.ErrInvalidArgument)
	}
	if i := strings.IndexAny(root, ":,\\"); i >= 0 {
		return fmt.Errorf("overlay: root %q holds %q, which separates mount options: %w", root, root[i], errdefs.ErrInvalidArgument)
	}
	return nil
}

// HostOptions are the options that overlay mounts need on this host.
func HostOptions() []string { return hostOptions(parameters, inUserNamespace()) }

func hostOptions(parameters string, mapped bool) []string {
	var options []string
	if _, err := os.Stat(filepath.Join(parameters, "index")); err == nil {
		// An index would bind layers to the file handles of this very disk, and a
		// directory could not be upper in two mounts one after the other.
		options = append(options, "index=off")
	}
	if mapped {
		// There the kernel neither grants trusted.* attributes (user.* stand in for
		// them, since 5.11), nor follows redirects or metacopies.
		return append(options, "userxattr")
	}
	for _, name := range []string{"metacopy", "redirect_dir"} {
		value, err := os.ReadFile(filepath.Join(parameters, name))
		if err == nil && isOn(string(value)) {
			options = append(options, name+"=off")
		}
	}
	return options
}

func isOn(value string) bool {
	switch strings.TrimSpace(value) {
	case "Y", "1", "on":
		return true
	}
	return false
}

// inUserNamespace tells whether ids are mapped, which they are in every user
// namespace but the first.
func inUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // a kernel without user namespaces
	}
	fields := strings.Fields(string(data))
	return len(fields) != 3 || fields[0] != "0" || fields[1] != "0" || fields[2] != "4294967295"
}
