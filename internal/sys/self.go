package sys

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SetSubreaper makes this process the one to which orphans below it are given
// (since Linux 3.4).
func SetSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// The range of oom_score_adj, and what a score of one's own may not be below
// without CAP_SYS_RESOURCE: the value it was started with.
const (
	MinOOMScore = -1000
	MaxOOMScore = 1000
)

// OOMScore reads a process's oom_score_adj.
func OOMScore(pid int) (int, error) {
	data, err := os.ReadFile(oomPath(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// SetOOMScore sets a process's oom_score_adj. To lower it needs
// CAP_SYS_RESOURCE; without, the error is fs.ErrPermission.
func SetOOMScore(pid, score int) error {
	score = min(max(score, MinOOMScore), MaxOOMScore)
	f, err := os.OpenFile(oomPath(pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(score))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func oomPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }

// Credentials say who is at the other end of a unix socket: the effective ids
// when it called connect(2) or listen(2).
type Credentials struct {
	PID int
	UID uint32
	GID uint32
}

// PeerCredentials asks the kernel who is at the other end (SO_PEERCRED).
func PeerCredentials(conn *net.UnixConn) (Credentials, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Credentials{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Credentials{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}
