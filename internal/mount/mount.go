// Package mount owns what berth knows of mounts: their description, fstab-style
// options turned into system calls, and clean unmounting. It links nothing but
// system calls, so that the shim can carry it.
//
// It does not keep a record of what it mounted: the kernel's mount table is the
// record, and UnmountAll reads it.
package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// Mount describes one mount, in the terms of mount(8). It is the Go side of the
// wire message containerd.types.Mount.
type Mount struct {
	Type    string   // file system, or "bind"
	Source  string   // device, directory, or the type's own name
	Target  string   // a subdirectory of the mount point; usually empty
	Options []string // fstab style
}

// All mounts each of mounts at target, in order. After an error whatever it
// had mounted is unmounted again. No mounts at all is InvalidArgument: nobody
// wants an empty directory as a root file system.
func All(mounts []Mount, target string) error {
	if len(mounts) == 0 {
		return fmt.Errorf("mount at %q: no mounts given: %w", target, errdefs.ErrInvalidArgument)
	}
	for i, m := range mounts {
		err := m.Do(target)
		if err == nil {
			continue
		}
		for j := i - 1; j >= 0; j-- {
			err = errors.Join(err, mounts[j].undo(target))
		}
		return err
	}
	return nil
}

// Do mounts m at target, or at m.Target within it. That path is resolved as if
// target were the root directory: no link in it leads out. After an error
// nothing is mounted. Options that can't be honoured are Unimplemented, those
// that make no sense InvalidArgument; a failing system call is an *os.SyscallError
// or a unix.Errno below.
func (m Mount) Do(target string) error {
	if err := m.do(target); err != nil {
		return fmt.Errorf("mount %s %q at %q: %w", m.Type, m.Source, target+m.sub(), err)
	}
	return nil
}

func (m Mount) sub() string {
	if m.Target == "" {
		return ""
	}
	return "/" + m.Target
}

func (m Mount) do(target string) error {
	o, err := parse(m.Type, m.Options)
	if err != nil {
		return err
	}
	at, err := locate(target, m.Target)
	if err != nil {
		return err
	}
	defer at.close()
	if o.flags&unix.MS_REMOUNT != 0 {
		return m.remount(at, o)
	}
	if err := m.attach(at, o); err != nil {
		return err
	}
	// From here on the mount point has to be looked up again: at leads to what
	// the new mount covers.
	if err := m.finish(target, o); err != nil {
		return errors.Join(err, m.undo(target))
	}
	return nil
}

// attach makes the mount itself.
func (m Mount) attach(at place, o options) error {
	switch {
	case o.ids.given() && o.flags&unix.MS_BIND != 0:
		return o.ids.bind(m.Source, at.path, o.flags)
	case o.ids.given():
		return mountMapped(m.Source, at, o)
	}
	if o.flags&unix.MS_BIND != 0 {
		// A bind mount heeds no other flag; finish sets the rest.
		return unix.Mount(m.Source, at.path, "", o.flags&(unix.MS_BIND|unix.MS_REC), "")
	}
	if m.Type == "overlay" {
		return mountOverlay(m.Source, at, o)
	}
	if o.loop {
		device, err := OpenLoop(m.Source, o.flags&unix.MS_RDONLY != 0)
		if err != nil {
			return err
		}
		defer device.Close() // the mount has it by then
		m.Source = device.Name()
	}
	data := o.joined()
	if len(data) >= pageSize {
		return fmt.Errorf("%d bytes of options, the kernel takes %d: %w", len(data), pageSize-1, errdefs.ErrInvalidArgument)
	}
	err := unix.Mount(m.Source, at.path, m.Type, o.flags, data)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("this kernel has no file system %q: %w", m.Type, err)
	}
	return err
}

// finish sets what can only be set on a mount that exists: flags of a bind
// mount, and propagation.
func (m Mount) finish(target string, o options) error {
	bindFlags := o.flags &^ (unix.MS_BIND | unix.MS_REC)
	restrict := o.flags&unix.MS_BIND != 0 && (bindFlags != 0 || o.cleared != 0)
	if !restrict && len(o.propagation) == 0 {
		return nil
	}
	at, err := locate(target, m.Target)
	if err != nil {
		return err
	}
	defer at.close()
	if restrict {
		if err := remountBind(at, bindFlags, o.cleared); err != nil {
			return err
		}
	}
	for _, flag := range o.propagation {
		if err := unix.Mount("", at.path, "", flag, ""); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	return nil
}

// remount changes a mount that is there already.
func (m Mount) remount(at place, o options) error {
	if o.flags&unix.MS_BIND != 0 {
		return remountBind(at, o.flags&^(unix.MS_BIND|unix.MS_REC|unix.MS_REMOUNT), o.cleared)
	}
	return unix.Mount(m.Source, at.path, m.Type, o.flags, o.joined())
}

// remountBind sets flags of one mount point. What the mount has already stays
// set unless it is in cleared: a read-only bind of a nosuid directory must not
// become suid by being made read-only.
func remountBind(at place, flags, cleared uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(at.path, &st); err != nil {
		return fmt.Errorf("read mount flags: %w", err)
	}
	flags |= currentFlags(int64(st.Flags)) &^ cleared
	if err := unix.Mount("", at.path, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("set mount flags: %w", err)
	}
	return nil
}

// undo takes away the topmost mount at the mount point of m.
func (m Mount) undo(target string) error {
	at, err := locate(target, m.Target)
	if err != nil {
		return err
	}
	// An open handle on the mount would keep it busy, so it goes by name.
	name := at.name()
	at.close()
	if err := unmountOne(name); err != nil {
		return fmt.Errorf("unmount %q: %w", name, err)
	}
	return nil
}
