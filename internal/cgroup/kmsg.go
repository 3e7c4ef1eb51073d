package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kernelLog = "/dev/kmsg"
	// maxRecord is the largest record of the kernel's log, in bytes (PRINTK_MESSAGE_MAX).
	maxRecord = 8 << 10
	// maxRecords bounds how many are read. A log of 16 MiB has no more.
	maxRecords = 1 << 18
	// lately is how long ago a kill may have been. The log's clock is not slewed as
	// CLOCK_MONOTONIC is, so that they differ by up to a thousandth of the uptime.
	lately = time.Minute
	drift  = 1000
)

// Killed tells whether the kernel's log says that the OOM killer has just ended a
// process, which may be gone. It is for those whose group is gone, and its counter
// with it. An error: the log can't be read.
func Killed(pid int) (bool, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return false, fmt.Errorf("monotonic clock: %w", err)
	}
	fd, err := unix.Open(kernelLog, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", kernelLog, err)
	}
	defer unix.Close(fd)
	found := false
	buf := make([]byte, maxRecord)
	for range maxRecords {
		n, err := unix.Read(fd, buf) // one record, the oldest first
		switch {
		case errors.Is(err, unix.EAGAIN):
			return found, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR), errors.Is(err, unix.EINVAL): // overwritten; interrupted; too large
			continue
		case err != nil:
			return false, fmt.Errorf("read %s: %w", kernelLog, err)
		case n == 0:
			return found, nil
		}
		found = found || killedIn(buf[:n], pid, time.Duration(now.Nano()))
	}
	return found, nil
}

// killedIn tells whether a record of the kernel's log, "PRIORITY,SEQUENCE,MICROSECONDS,...;TEXT",
// is that of the kill of a process shortly before now (mm/oom_kill.c, __oom_kill_process).
func killedIn(record []byte, pid int, now time.Duration) bool {
	head, text, ok := bytes.Cut(record, []byte{';'})
	if !ok || !bytes.Contains(text, []byte("ut of memory")) || !bytes.Contains(text, []byte(": Killed process "+strconv.Itoa(pid)+" (")) {
		return false
	}
	fields := bytes.SplitN(head, []byte{','}, 4)
	if len(fields) < 3 {
		return false
	}
	at, err := strconv.ParseInt(string(fields[2]), 10, 64)
	ago := now - time.Duration(at)*time.Microsecond
	return err == nil && ago.Abs() <= lately+now/drift
}
