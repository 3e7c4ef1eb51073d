package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/size"
	"github.com/berthd/berth/snapshots"
)

// Project quotas: see quotactl(2) and ioctl_xfs_fsgetxattr(2). Everything made
// in a directory belongs to the directory's project, and what a project takes
// has a limit. Upper and working directory of a snapshot have a project of their
// own; which one it is, only the working directory is asked: what is in the other
// may belong to a container.
const (
	quotaGet     = 0x800007 // Q_GETQUOTA
	quotaSet     = 0x800008 // Q_SETQUOTA
	quotaState   = 0x5808   // Q_XGETQSTATV, which ext4 answers as well
	projectQuota = 2
	quotaLimits  = 1    // QIF_BLIMITS: the limits of space count
	quotaBlock   = 1024 // bytes, unit of limits
	counted      = 1 << 4
	enforced     = 1 << 5 // FS_QUOTA_PDQ_ENFD

	getXattr = 0x801c581f // FS_IOC_FSGETXATTR
	setXattr = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit  = 0x200      // FS_XFLAG_PROJINHERIT

	// firstProject is above what /etc/projid of most machines has. A snapshot has
	// the project firstProject+N, unless that is taken.
	firstProject = 1 << 24
	// maxProjects is how many projects are tried.
	maxProjects = 64
)

// dqblk is struct if_dqblk.
type dqblk struct {
	hard, soft, space              uint64
	inodesHard, inodesSoft, inodes uint64
	time, inodesTime               uint64
	valid                          uint32
	_                              uint32
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// statv is struct fs_quota_statv, of which only the flags matter.
type statv struct {
	version uint8
	_       uint8
	flags   uint16
	_       [156]byte
}

// ProbeQuota tells why the writable layers below root can't be given limits, or
// nil. FailedPrecondition, with the reason and what to do.
func ProbeQuota(root string) error {
	dir, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("quota: %w", err)
	}
	defer dir.Close()
	state := statv{version: 1}
	err = quotactl(dir, quotaState, 0, unsafe.Pointer(&state))
	switch {
	case err != nil:
	case state.flags&counted == 0:
		err = errors.New("it counts other quotas only")
	case state.flags&enforced == 0:
		err = errors.New("it counts what projects take, and limits nothing")
	default:
		_, err = project(dir)
	}
	if err != nil {
		return fmt.Errorf("layers in %s can't be given a limit: its file system keeps no project quotas (%w); "+
			"mount an ext4 (made with -O quota,project) or an XFS there with the option prjquota: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// quotactl calls quotactl_fd(2), since 5.14.
func quotactl(f *os.File, command int, id uint32, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), uintptr(command<<8|projectQuota), uintptr(id), uintptr(data), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("quotactl_fd", errno)
	}
	return nil
}

// project reads the project of a directory.
func project(f *os.File) (fsxattr, error) {
	var x fsxattr
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getXattr, uintptr(unsafe.Pointer(&x)))
	if errno != 0 {
		return x, os.NewSyscallError("read project", errno)
	}
	return x, nil
}

// setProject makes a directory, and all that will be made in it, part of a project.
func setProject(path string, id uint32) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	x, err := project(f)
	if err != nil {
		return err
	}
	x.project, x.flags = id, x.flags|inherit
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setXattr, uintptr(unsafe.Pointer(&x)))
	if errno != 0 {
		return &os.PathError{Op: "set project of", Path: path, Err: errno}
	}
	return nil
}

// projects gives the projects that a snapshot may have, the one to prefer first.
func projects(id snapshots.ID) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if id < math.MaxUint32-firstProject && !yield(uint32(firstProject+id)) {
			return
		}
		for range maxProjects {
			if !yield(firstProject + rand.Uint32N(math.MaxUint32-firstProject)) {
				return
			}
		}
	}
}

// limitOf is how many bytes a new snapshot may take; 0: any. A layer of an image
// has no limit.
func (d *Driver) limitOf(o snapshots.CreateOptions) (int64, error) {
	if o.Kind != snapshots.Active || o.Layer || unpacked(o.Labels) {
		return 0, nil
	}
	text := o.Labels[labelMaxSize]
	if text == "" {
		return d.config.Quota, nil
	}
	limit, err := size.Parse(text)
	if err != nil {
		return 0, fmt.Errorf("label %s: %w", labelMaxSize, err)
	}
	return limit, nil
}

// limit gives the directories of a new snapshot, which are empty, their limit, and
// tells the project; 0: there is no limit.
func (d *Driver) limit(dir string, id snapshots.ID, o snapshots.CreateOptions) (uint32, error) {
	limit, err := d.limitOf(o)
	if err != nil || limit == 0 {
		return 0, err
	}
	if err := ProbeQuota(d.dirs.Root()); err != nil {
		return 0, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for p := range projects(id) {
		taken, err := takeProject(f, p)
		if err != nil {
			return 0, err
		}
		if taken {
			return p, setLimit(f, p, limit)
		}
	}
	return 0, fmt.Errorf("each of %d projects on the file system of %s is taken: %w", maxProjects, d.dirs.Root(), errdefs.ErrUnavailable)
}

// takeProject gives the directories of a new snapshot a project, unless others
// have that: another daemon with a root on the same file system, somebody's own
// projects, files that are removed and still open. Who takes the same at the same
// time sees too many directories in it, as does this one, and both look further.
func takeProject(dir *os.File, p uint32) (bool, error) {
	if is, err := usage(dir, p); err != nil || is != (dqblk{}) {
		return false, err
	}
	for _, name := range []string{fsDir, workDir} {
		if err := setProject(filepath.Join(dir.Name(), name), p); err != nil {
			return false, err
		}
	}
	is, err := usage(dir, p)
	return is.inodes == 2, err
}

// usage is what a project takes and may take on the file system of dir.
func usage(dir *os.File, p uint32) (dqblk, error) {
	var is dqblk
	err := quotactl(dir, quotaGet, p, unsafe.Pointer(&is))
	if errors.Is(err, unix.ENOENT) { // xfs knows of none such
		return dqblk{}, nil
	}
	is.valid, is.time, is.inodesTime = 0, 0, 0
	return is, err
}

// setLimit sets how much a project may take on the file system of dir; 0: any.
func setLimit(dir *os.File, p uint32, limit int64) error {
	block := dqblk{hard: uint64(limit+quotaBlock-1) / quotaBlock, valid: quotaLimits}
	return quotactl(dir, quotaSet, p, unsafe.Pointer(&block))
}

// lift takes the limit off a project, which nothing is in any more or soon.
func (d *Driver) lift(p uint32) error {
	dir, err := os.Open(d.dirs.Root())
	if err != nil {
		return err
	}
	defer dir.Close()
	err = setLimit(dir, p, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESRCH) { // there are no quotas any more
		return nil
	}
	return err
}

// unlimit takes the limit off a snapshot that is to go, whole or not.
func (d *Driver) unlimit(id snapshots.ID) error {
	above, err := projectAt(filepath.Dir(d.dirs.Path(id)))
	if err != nil || !above.known {
		return err
	}
	for _, dir := range d.dirs.Places(id) {
		own, err := projectAt(filepath.Join(dir, workDir))
		if err != nil {
			return err
		}
		// Without a limit it has the project of the directory that it was made in.
		if own.known && own.id >= firstProject && own.id != above.id {
			return d.lift(own.id)
		}
	}
	return nil
}

// owned is the project of a directory, where there are projects.
type owned struct {
	id    uint32
	known bool
}

// projectAt reads the project of a directory, which need not be there.
func projectAt(path string) (owned, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return owned{}, nil
	}
	if err != nil {
		return owned{}, err
	}
	defer f.Close()
	x, err := project(f)
	if err != nil {
		return owned{}, nil // a file system without
	}
	return owned{x.project, true}, nil
}
