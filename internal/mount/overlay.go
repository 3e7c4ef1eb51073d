package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// mountOverlay mounts an overlay however long its list of lower directories
// is. mount(2) takes one page of options, about 40 layers. Beyond that the
// layers go one by one through fsconfig(2) with "lowerdir+" (since 6.8); on an
// older kernel by mount(2) from their common parent with relative names.
func mountOverlay(source string, at place, o options) error {
	data := o.joined()
	if len(data) >= pageSize {
		err := mountLayers(source, at, o)
		if !errors.Is(err, errdefs.ErrNotImplemented) {
			return err
		}
		return mountRelative(source, at, o)
	}
	return explained(unix.Mount(source, at.path, "overlay", o.flags, data), source, o)
}

// mountLayers mounts an overlay through the mount API of 5.2. Unimplemented:
// the kernel has no such API, or it has no "lowerdir+".
func mountLayers(source string, at place, o options) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("fsopen: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if takesAnything(fs) {
		return fmt.Errorf("fsconfig: this kernel passes the options of overlay as one page, too: %w", errdefs.ErrNotImplemented)
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return refused(fs, "source", err)
	}
	if o.flags&unix.MS_RDONLY != 0 {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return refused(fs, "ro", err)
		}
	}
	for _, option := range o.data {
		if err := configure(fs, option); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return refused(fs, "create", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes(o.flags))
	if err != nil {
		return refused(fs, "fsmount", err)
	}
	defer unix.Close(mnt)
	err = unix.MoveMount(mnt, "", unix.AT_FDCWD, at.path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	return os.NewSyscallError("move_mount", err)
}

// takesAnything tells whether a context only collects what it is given for the
// page of options of mount(2), as that of overlay does before 6.5. Then it refuses
// nothing until the end, and what it refuses there it tells the kernel's log alone.
func takesAnything(fs int) bool {
	if err := unix.FsconfigSetFlag(fs, "berth.unknown"); err == nil {
		return true
	}
	messages(fs) // of the flag
	return false
}

// configure passes one option of an overlay to fs.
func configure(fs int, option string) error {
	key, value, hasValue := strings.Cut(option, "=")
	switch {
	case !hasValue:
		if err := unix.FsconfigSetFlag(fs, key); err != nil {
			return refused(fs, key, err)
		}
		return nil
	case key == "lowerdir":
		return addLayers(fs, value)
	case key == "upperdir" || key == "workdir":
		return setDirectory(fs, key, unescape(value))
	}
	if err := unix.FsconfigSetString(fs, key, value); err != nil {
		return refused(fs, key, err)
	}
	return nil
}

// addLayers gives fs the lower directories one by one, nearest first.
func addLayers(fs int, list string) error {
	for i, dir := range splitLayers(list) {
		err := setDirectory(fs, "lowerdir+", dir)
		if i == 0 && errors.Is(err, unix.EINVAL) && !exists(dir) {
			return fmt.Errorf("lower directory %q: %w", dir, unix.ENOENT)
		}
		if i == 0 && errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return fmt.Errorf("lower directory %q: %w", dir, err)
		}
	}
	return nil
}

// maxString is what fsconfig(2) takes as one string, its final zero included.
const maxString = 256

// setDirectory passes a directory as a string; one whose name is too long for
// that by way of an open handle.
func setDirectory(fs int, key, dir string) error {
	if len(dir) >= maxString {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %q: %w", dir, err)
		}
		defer unix.Close(fd)
		dir = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	if err := unix.FsconfigSetString(fs, key, dir); err != nil {
		return refused(fs, key, err)
	}
	return nil
}

// mountRelative mounts an overlay with lower directories named relative to
// their common parent. A thread of its own goes there, and ends: no other
// thread's working directory changes.
func mountRelative(source string, at place, o options) error {
	base, short := shorten(o.data)
	data := strings.Join(short, ",")
	if base == "" || len(data) >= pageSize {
		return fmt.Errorf("%d bytes of options, this kernel takes %d: %w", len(data), pageSize-1, errdefs.ErrInvalidArgument)
	}
	if at.fd < 0 {
		abs, err := filepath.Abs(at.path)
		if err != nil {
			return err
		}
		at.path = abs
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with its working directory
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- os.NewSyscallError("unshare", err)
			return
		}
		if err := unix.Chdir(base); err != nil {
			result <- fmt.Errorf("chdir %q: %w", base, err)
			return
		}
		result <- unix.Mount(source, at.path, "overlay", o.flags, data)
	}()
	return explained(<-result, source, o)
}

// shorten finds the directory that all lower directories lie under and names
// them relative to it; base is "" if that gains nothing.
func shorten(data []string) (base string, short []string) {
	for i, option := range data {
		list, ok := strings.CutPrefix(option, "lowerdir=")
		if !ok {
			continue
		}
		dirs := splitLayers(list)
		base = filepath.Dir(dirs[0])
		for _, dir := range dirs {
			for base != "/" && base != "." && !strings.HasPrefix(dir, base+"/") {
				base = filepath.Dir(base)
			}
		}
		if base == "/" || base == "." {
			return "", data
		}
		for j, dir := range dirs {
			dirs[j] = escape(dir[len(base)+1:])
		}
		short = append(append(append(short, data[:i]...), "lowerdir="+strings.Join(dirs, ":")), data[i+1:]...)
		return base, short
	}
	return "", data
}

// splitLayers splits a lowerdir value at its colons; a backslash takes the
// meaning from the character after it.
func splitLayers(list string) []string {
	var dirs []string
	start := 0
	for i := 0; i < len(list); i++ {
		switch list[i] {
		case '\\':
			i++
		case ':':
			dirs = append(dirs, unescape(list[start:i]))
			start = i + 1
		}
	}
	return append(dirs, unescape(list[start:]))
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

var escaper = strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)

func escape(s string) string { return escaper.Replace(s) }

func exists(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil
}

// attributes turns mount flags into those of fsmount(2).
func attributes(flags uintptr) int {
	attr := 0
	for _, pair := range [...]struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}, {unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
		{unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME}, {unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
	} {
		if flags&pair.flag != 0 {
			attr |= pair.attr
		}
	}
	return attr
}
