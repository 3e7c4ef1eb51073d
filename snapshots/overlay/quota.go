package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
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
// has a limit.
const (
	quotaGetFormat = 0x800004
	quotaSet       = 0x800008
	projectQuota   = 2
	quotaLimits    = 1    // QIF_BLIMITS: the limits of space count
	quotaBlock     = 1024 // bytes, unit of limits

	getXattr = 0x801c581f // FS_IOC_FSGETXATTR
	setXattr = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit  = 0x200      // FS_XFLAG_PROJINHERIT

	// firstProject is above what /etc/projid of most machines has.
	firstProject = 1 << 24
)

// dqblk is struct if_dqblk.
type dqblk struct {
	hard, soft, space            uint64
	inodesHard, inodesSoft, used uint64
	time, inodesTime             uint64
	valid                        uint32
	_                            uint32
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// ProbeQuota tells why the writable layers below root can't be given limits, or
// nil. FailedPrecondition, with the reason and what to do.
func ProbeQuota(root string) error {
	dir, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("quota: %w", err)
	}
	defer dir.Close()
	var format uint32
	err = quotactl(dir, quotaGetFormat, 0, unsafe.Pointer(&format))
	if err == nil {
		_, err = project(dir)
	}
	if err != nil {
		return fmt.Errorf("layers in %s can't be given a limit: its file system has no project quotas (%w); "+
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

// projectOf is the project of a snapshot.
func projectOf(id snapshots.ID) (uint32, error) {
	if id > math.MaxUint32-firstProject {
		return 0, fmt.Errorf("number %s is too high for a project: %w", id, errdefs.ErrOutOfRange)
	}
	return uint32(firstProject + id), nil
}

// limitOf is how many bytes a new snapshot may take; 0: any. A layer of an image
// has no limit.
func (d *Driver) limitOf(o snapshots.CreateOptions) (int64, error) {
	if o.Kind != snapshots.Active || unpacked(o.Labels) {
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

// limit gives the directories of a new snapshot, which are empty, their limit.
func (d *Driver) limit(dir string, id snapshots.ID, o snapshots.CreateOptions) error {
	limit, err := d.limitOf(o)
	if err != nil || limit == 0 {
		return err
	}
	if err := ProbeQuota(d.dirs.Root()); err != nil {
		return err
	}
	p, err := projectOf(id)
	if err != nil {
		return err
	}
	for _, name := range []string{fsDir, workDir} {
		if err := setProject(filepath.Join(dir, name), p); err != nil {
			return err
		}
	}
	return setLimit(dir, p, limit)
}

// setLimit sets how much a project may take on the file system of dir; 0: any.
func setLimit(dir string, p uint32, limit int64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	block := dqblk{hard: uint64(limit+quotaBlock-1) / quotaBlock, valid: quotaLimits}
	return quotactl(f, quotaSet, p, unsafe.Pointer(&block))
}

// unlimit takes the limit off a snapshot that is to be a layer, or to go.
func (d *Driver) unlimit(id snapshots.ID) error {
	f, err := os.Open(d.fs(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	x, err := project(f)
	p, wrong := projectOf(id)
	if err != nil || wrong != nil || x.project != p {
		return nil // a file system without projects, or a snapshot without a limit
	}
	return setLimit(f.Name(), p, 0)
}
