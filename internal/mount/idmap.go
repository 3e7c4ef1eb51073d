package mount

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// An id-mapped mount shows the owners of files as a user namespace sees them, and
// changes nothing on disk: with the mapping 0:100000:65536 what belongs to 0 seems
// to belong to 100000. See mount_setattr(2), "ID-mapped mounts" (Linux 5.12), as
// layers of an overlay since 5.19.

// idMap is the mapping of a mount, each side as CTR:HOST:SIZE[,...].
type idMap struct{ uids, gids string }

func (m idMap) given() bool { return m.uids != "" || m.gids != "" }

// maxMappings is how many ranges a user namespace may have (user_namespaces(7)).
const maxMappings = 340

// parseMapping reads CTR:HOST:SIZE[,...].
func parseMapping(text string) ([]syscall.SysProcIDMap, error) {
	var list []syscall.SysProcIDMap
	for part := range strings.SplitSeq(text, ",") {
		fields := strings.Split(part, ":")
		var n [3]int
		ok := len(fields) == len(n)
		for i := 0; ok && i < len(n); i++ {
			v, err := strconv.ParseUint(fields[i], 10, 32)
			n[i], ok = int(v), err == nil
		}
		if !ok || n[2] == 0 || n[0]+n[2] > math.MaxUint32 || n[1]+n[2] > math.MaxUint32 {
			return nil, fmt.Errorf("mapping %q is not CTR:HOST:SIZE: %w", part, errdefs.ErrInvalidArgument)
		}
		list = append(list, syscall.SysProcIDMap{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	if len(list) > maxMappings {
		return nil, fmt.Errorf("mapping of %d ranges, the kernel takes %d: %w", len(list), maxMappings, errdefs.ErrInvalidArgument)
	}
	return list, nil
}

// parse checks that both sides are there and make sense.
func (m idMap) parse() (uids, gids []syscall.SysProcIDMap, err error) {
	if m.uids == "" || m.gids == "" {
		return nil, nil, fmt.Errorf("options uidmap and gidmap go together: %w", errdefs.ErrInvalidArgument)
	}
	if uids, err = parseMapping(m.uids); err != nil {
		return nil, nil, fmt.Errorf("option uidmap: %w", err)
	}
	if gids, err = parseMapping(m.gids); err != nil {
		return nil, nil, fmt.Errorf("option gidmap: %w", err)
	}
	return uids, gids, nil
}

// open makes a user namespace with the mapping, and gives a descriptor of it. A
// namespace needs a process to be made: this program again, which stops before its
// first instruction, as it is traced, and is killed there.
func (m idMap) open() (_ *os.File, err error) {
	uids, gids, err := m.parse()
	if err != nil {
		return nil, err
	}
	// Who traces a process is the thread that started it, which must not end before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids, Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	if errors.Is(err, unix.ENOSPC) {
		return nil, fmt.Errorf("no more user namespaces may be made (/proc/sys/user/max_user_namespaces): %w", errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("the kernel refuses the mapping uids %s, gids %s; ranges must not overlap: %w", m.uids, m.gids, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	if killed := p.Kill(); killed != nil && !errors.Is(killed, os.ErrProcessDone) {
		err = errors.Join(err, killed)
	}
	// A program that reaps whatever ends may have been faster.
	if _, waited := p.Wait(); waited != nil && !errors.Is(waited, unix.ECHILD) {
		err = errors.Join(err, waited)
	}
	if err != nil {
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return ns, nil
}

// holds tells whether a directory belongs to the mapped root already, on disk: the
// container itself has written what is in it, which must not be mapped once more.
func (m idMap) holds(dir string) (bool, error) {
	uids, gids, err := m.parse()
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return false, os.NewSyscallError("stat", err)
	}
	root := func(list []syscall.SysProcIDMap, id uint32) bool {
		for _, r := range list {
			if r.ContainerID == 0 {
				return r.HostID != 0 && uint32(r.HostID) == id
			}
		}
		return false
	}
	return root(uids, st.Uid) && root(gids, st.Gid), nil
}

// bind makes a bind mount with the mapping, unless source has that on disk.
func (m idMap) bind(source, target string, flags uintptr) error {
	mapped, err := m.holds(source)
	if err != nil {
		return err
	}
	if mapped {
		return unix.Mount(source, target, "", flags&(unix.MS_BIND|unix.MS_REC), "")
	}
	return m.attachTo(source, target, flags)
}

// attachTo makes an id-mapped bind mount of source.
func (m idMap) attachTo(source, target string, flags uintptr) error {
	ns, err := m.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	recursive := uint(0)
	if flags&unix.MS_REC != 0 {
		recursive = unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recursive, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%s can't be mounted with other owners: its file system, or this kernel, has no id-mapped mounts: %w: %w",
			source, os.NewSyscallError("mount_setattr", err), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	return os.NewSyscallError("move_mount", err)
}

// mountMapped mounts an overlay whose lower directories show mapped owners: they
// are reached through an id-mapped mount of the directory that all of them are in,
// which overlayfs clones, so that it can go at once. The upper directory is not
// mapped: what is written there belongs to whom it is written by.
func mountMapped(source string, at place, o options) (err error) {
	base, dirs, i := lowerOf(o.data)
	if base == "" {
		return fmt.Errorf("an overlay with mapped owners needs lowerdir with absolute paths: %w", errdefs.ErrInvalidArgument)
	}
	dir, hold, err := makeTemp()
	if err != nil {
		return fmt.Errorf("make a temporary mount point: %w", err)
	}
	defer hold.Close()
	defer func() { err = errors.Join(err, removeTemp(dir)) }()
	root := filepath.Join(dir, tempRoot)
	if err := o.ids.attachTo(base, root, 0); err != nil {
		return err
	}
	mapped := make([]string, len(dirs))
	for j, lower := range dirs {
		mapped[j] = escape(filepath.Join(root, strings.TrimPrefix(lower, base)))
	}
	o.data = append([]string(nil), o.data...)
	o.data[i] = "lowerdir=" + strings.Join(mapped, ":")
	return mountOverlay(source, at, o)
}

// lowerOf finds the lower directories of an overlay, the directory that all of
// them are in, and which option has them; base is "" if there is none.
func lowerOf(data []string) (base string, dirs []string, at int) {
	for i, option := range data {
		list, ok := strings.CutPrefix(option, "lowerdir=")
		if !ok {
			continue
		}
		dirs = splitLayers(list)
		base = dirs[0]
		for _, dir := range dirs {
			if !filepath.IsAbs(dir) {
				return "", nil, 0
			}
			for base != "/" && dir != base && !strings.HasPrefix(dir, base+"/") {
				base = filepath.Dir(base)
			}
		}
		return base, dirs, i
	}
	return "", nil, 0
}
