package sys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type Stat struct {
	PID       int
	Comm      string
	State     byte // R, S, D, Z, T, t, X, I
	PPID      int
	Session   int
	Threads   int    // field 20, those of the whole process
	StartTime uint64 // field 22, clock ticks since boot
	// ExitCode is field 52, in the form of waitpid(2). The kernel shows it to
	// those who may ptrace the process; for others, and while it lives, it is 0.
	ExitCode int
}

// Dead tells whether the process has ended and waits to be reaped. The state is
// that of its first thread: where that has ended and others run on, or are still
// giving back what they hold, the process has not.
func (s Stat) Dead() bool {
	return s.State == 'Z' && s.Threads <= 1 || s.State == 'X' || s.State == 'x'
}

// Fields of /proc/PID/stat, counted from the one after the command, field 3.
const (
	fieldState     = 0
	fieldPPID      = 4 - 3
	fieldSession   = 6 - 3
	fieldThreads   = 20 - 3
	fieldStartTime = 22 - 3
	fieldExitCode  = 52 - 3
)

const maxStat = 64 << 10 // bytes; a line has hundreds

// ReadStat reads /proc/PID/stat. No such process is os.ErrProcessDone.
func ReadStat(pid int) (Stat, error) {
	data, err := ReadFile("/proc/"+strconv.Itoa(pid)+"/stat", maxStat)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Stat{}, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	if err != nil {
		return Stat{}, err
	}
	s, err := parseStat(data)
	if err != nil {
		return Stat{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	return s, nil
}

// parseStat reads a stat line. The command, which the process chooses, stands
// in parentheses and may hold spaces and parentheses itself; nothing after it
// does, so it ends at the last one.
func parseStat(line []byte) (Stat, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Stat{}, fmt.Errorf("no command in parentheses in %q", clip(line))
	}
	s := Stat{Comm: string(line[open+1 : end])}
	fields := strings.Fields(string(line[end+1:]))
	if len(fields) <= fieldStartTime || len(fields[fieldState]) != 1 {
		return Stat{}, fmt.Errorf("%d fields after the command in %q", len(fields), clip(line))
	}
	s.State = fields[fieldState][0]
	var errs [6]error
	s.PID, errs[0] = strconv.Atoi(strings.TrimSpace(string(line[:open])))
	s.PPID, errs[1] = strconv.Atoi(fields[fieldPPID])
	s.Session, errs[5] = strconv.Atoi(fields[fieldSession])
	s.Threads, errs[4] = strconv.Atoi(fields[fieldThreads])
	s.StartTime, errs[2] = strconv.ParseUint(fields[fieldStartTime], 10, 64)
	if len(fields) > fieldExitCode { // since 3.5
		s.ExitCode, errs[3] = strconv.Atoi(fields[fieldExitCode])
	}
	return s, errors.Join(errs[:]...)
}

// clip bounds what an error quotes.
func clip(b []byte) []byte { return b[:min(len(b), 120)] }

// StartTime returns when a process started, in clock ticks since boot. With its
// pid it names the process for the time of a boot.
func StartTime(pid int) (uint64, error) {
	s, err := ReadStat(pid)
	return s.StartTime, err
}

// Alive tells whether the process with this pid is still the one that started
// then, and no zombie.
func Alive(pid int, start uint64) bool {
	s, err := ReadStat(pid)
	return err == nil && s.StartTime == start && !s.Dead()
}

// Zombie tells whether the process has ended and was not reaped.
func Zombie(pid int) bool {
	s, err := ReadStat(pid)
	return err == nil && s.Dead()
}

// HasChildren tells whether this process has any children, zombies included.
func HasChildren() bool {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if err != unix.EINTR {
			return err != unix.ECHILD
		}
	}
}

// Children lists the children of a process, zombies included. It reads
// /proc/PID/task/TID/children, or where the kernel lacks that (no
// CONFIG_PROC_CHILDREN) the parents of all processes.
func Children(pid int) ([]int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("children of process %d: %w", pid, err)
	}
	var children []int
	for _, task := range tasks {
		data, err := os.ReadFile(filepath.Join(dir, task.Name(), "children"))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/children"); err != nil {
				return childrenByParent(pid)
			}
			continue // that thread ended
		}
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("children of process %d: %w", pid, err)
		}
		for field := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("children of process %d: %w", pid, err)
			}
			children = append(children, child)
		}
	}
	return children, nil
}

func childrenByParent(pid int) ([]int, error) {
	return processes(func(s Stat) bool { return s.PPID == pid })
}

// Session lists the processes of a session that live. The number of a session is
// no process's but its leader's as long as there is one in it.
func Session(id int) ([]int, error) {
	return processes(func(s Stat) bool { return s.Session == id && !s.Dead() })
}

// processes lists those that are as wanted, of all that there are.
func processes(wanted func(Stat) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := ReadStat(pid); err == nil && wanted(s) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// InitOfNamespace tells whether the process is the first of its own pid
// namespace, so that the kernel ends all others there with it.
func InitOfNamespace(pid int) (bool, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/status"
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok { // since 4.1
			ids := strings.Fields(rest)
			return len(ids) > 1 && ids[len(ids)-1] == "1", nil
		}
	}
	return false, fmt.Errorf("%s has no NSpid", path)
}

// BootID names this boot of the machine.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
