package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Loop devices.
const (
	loopControl = "/dev/loop-control"
	loopMajor   = 7
	loopTries   = 64 // for a free device, beside others who want one
)

// OpenLoop binds a file to a loop device that is free, and gives the open
// device. It is let go of by the kernel when nobody has it open or mounted any
// more, so a process that dies leaves none behind. The file is not followed if
// it is a link.
func OpenLoop(file string, readOnly bool) (*os.File, error) {
	device, err := openLoop(file, readOnly)
	if err != nil {
		return nil, fmt.Errorf("loop device for %q: %w", file, err)
	}
	return device, nil
}

func openLoop(file string, readOnly bool) (*os.File, error) {
	mode, flags := unix.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode, flags = unix.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	fd, err := unix.Open(file, mode|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("it is no regular file: %w", unix.EINVAL)
	}
	control, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", loopControl, err)
	}
	defer unix.Close(control)
	config := unix.LoopConfig{Fd: uint32(fd), Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	for range loopTries {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // another has been faster
			return nil, err
		}
	}
	return nil, fmt.Errorf("%d times another was faster: %w", loopTries, unix.EBUSY)
}

// KeepLoop has a loop device stay bound until ClearLoop, whoever closes it.
func KeepLoop(device *os.File) error {
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err == nil {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopSetStatus64(int(device.Fd()), info)
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", device.Name(), err)
	}
	return nil
}

// ClearLoop lets go of the loop device that path leads to, at once or when its
// last user is gone. That path leads to none, or to one that is free, is no
// error.
func ClearLoop(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(uint64(st.Rdev)) != loopMajor {
		return nil
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return &os.PathError{Op: "let go of loop device", Path: path, Err: err}
	}
	return nil
}
