package sys

import (
	"golang.org/x/sys/unix"
)

// ExitStatus tells how a process ended that is not ours to wait for, where the
// kernel can still say: while it is a zombie, and with a pidfd also after it
// was reaped (PIDFD_GET_INFO, since Linux 6.15). ok is false while the process
// lives, and where the kernel can't say.
func (p *Process) ExitStatus() (status unix.WaitStatus, ok bool) {
	// The process may be reaped between the two questions; then the first one,
	// asked again, has the answer.
	for range 2 {
		if status, ok := p.reapedStatus(); ok {
			return status, true
		}
		stat, err := ReadStat(p.pid)
		if err == nil && stat.StartTime == p.start {
			return unix.WaitStatus(stat.ExitCode), stat.Dead() && (stat.ExitCode != 0 || mayTrace())
		}
	}
	return 0, false
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
