package sys

import (
	"golang.org/x/sys/unix"
)

// Source says from where an exit status is known.
type Source uint8

const (
	SourceNone   Source = iota // it is not
	SourceWait                 // waited for, as the process's parent
	SourcePidfd                // PIDFD_GET_INFO of a pidfd, since Linux 6.15
	SourceZombie               // the exit code in /proc/PID/stat, of a zombie that another process has yet to reap
)

var sourceNames = [...]string{"nowhere", "wait", "the kernel, by pidfd", "the kernel, as a zombie"}

// String names the source for a record.
func (s Source) String() string { return sourceNames[s] }

// ExitStatus tells how a process ended that is not ours to wait for, where the
// kernel can still say: while it is a zombie, and with a pidfd also after it
// was reaped (PIDFD_GET_INFO, since Linux 6.15). ok is false while the process
// lives, and where the kernel can't say.
func (p *Process) ExitStatus() (status unix.WaitStatus, ok bool) {
	status, source := p.observe()
	return status, source != SourceNone
}

// LastStatus tells how a process ended whose parent has died, and from where
// that is known: by waiting for it, if it has become a child of this process,
// which reaps it, else as ExitStatus does.
func (p *Process) LastStatus() (unix.WaitStatus, Source) {
	// A pid that has become another process's must not be waited for.
	if stat, err := ReadStat(p.pid); err != nil || stat.StartTime != p.start {
		return p.observe()
	}
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err == nil && got == p.pid {
			return status, SourceWait
		}
		return p.observe()
	}
}

func (p *Process) observe() (unix.WaitStatus, Source) {
	// The process may be reaped between the two questions; then the first one,
	// asked again, has the answer.
	for range 2 {
		if status, ok := p.reapedStatus(); ok {
			return status, SourcePidfd
		}
		stat, err := ReadStat(p.pid)
		if err == nil && stat.StartTime == p.start {
			if stat.Dead() && (stat.ExitCode != 0 || mayTrace()) {
				return unix.WaitStatus(stat.ExitCode), SourceZombie
			}
			return 0, SourceNone
		}
	}
	return 0, SourceNone
}

// mayTrace tells whether this process may look into every other one. To who may
// not, /proc/PID/stat shows the exit code 0 of any process.
func mayTrace() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
}

func (p *Process) reapedStatus() (unix.WaitStatus, bool) {
	if p.fd == nil {
		return 0, false
	}
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	cerr := conn.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) })
	if cerr != nil || err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.Exit_code), true
}
