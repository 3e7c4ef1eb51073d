package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OOM is what the kernel's OOM killer does in one group, held open to be read
// and, with an Alarm, to be woken by. Version 1 tells it in memory.oom_control
// (the counter since Linux 4.13) and by an eventfd, version 2 in memory.events
// (since 4.18), whose changes can be polled for.
type OOM struct {
	counter *os.File
	signal  *os.File // version 1: the eventfd; nil before Watch
	unified bool
}

// OpenOOM opens what the group tells of the OOM killer. Without the memory
// controller there is nothing: fs.ErrNotExist.
func (g Group) OpenOOM() (*OOM, error) {
	path := filepath.Join(g.Unified, "memory.events")
	if g.Unified == "" {
		dir, ok := g.Controllers["memory"]
		if !ok {
			return nil, fmt.Errorf("memory controller: %w", os.ErrNotExist)
		}
		path = filepath.Join(dir, "memory.oom_control")
	}
	// Not os.Open: that would have the poller of this process take the file, too.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &OOM{counter: os.NewFile(uintptr(fd), path), unified: g.Unified != ""}, nil
}

// Kills counts the processes of the group that the OOM killer has ended, with
// version 2 also those of groups below it. The kernel counts before it kills, so
// the death of a process that was killed is never seen ahead of its count. stuck
// tells that the group is out of memory and the killer is switched off in it
// (version 1), so that its processes stand still.
func (o *OOM) Kills() (n uint64, stuck bool, err error) {
	buf := make([]byte, 512) // some lines of two words
	size, err := o.counter.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, false, err
	}
	var disabled, under uint64
	for line := range bytes.Lines(buf[:size]) {
		key, value, _ := strings.Cut(string(bytes.TrimSpace(line)), " ")
		v, _ := number(value)
		switch key {
		case "oom_kill":
			n = v
		case "oom_kill_disable":
			disabled = v
		case "under_oom":
			under = v
		}
	}
	return n, disabled != 0 && under != 0, nil
}

// Close ends the watch, if there is one.
func (o *OOM) Close() error {
	err := o.counter.Close()
	if o.signal != nil {
		err = errors.Join(err, o.signal.Close())
	}
	return err
}

// Alarm wakes one goroutine when the OOM killer may have been at work in any of
// a number of groups. It holds one descriptor and no thread.
type Alarm struct{ epoll *os.File }

// NewAlarm makes an alarm that nothing sets off yet.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that Go's poller takes it
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	a := &Alarm{os.NewFile(uintptr(fd), "oom alarm")}
	if err := a.epoll.SetReadDeadline(time.Time{}); err != nil { // it did not, and Wait would not wait
		return nil, errors.Join(fmt.Errorf("oom alarm: %w", err), a.Close())
	}
	return a, nil
}

// Watch adds a group, until its OOM is closed.
//
// There is no inotify in it: of its instances root has 128 for all of the machine
// (fs.inotify.max_user_instances), and a machine may have more shims.
func (a *Alarm) Watch(o *OOM) error {
	file, events := o.counter, uint32(unix.EPOLLPRI) // a change of the file (cgroup-v2.rst)
	if !o.unified {
		if err := o.subscribe(); err != nil {
			return err
		}
		file, events = o.signal, unix.EPOLLIN
	}
	fd := int(file.Fd())
	epoll, err := a.epoll.SyscallConn()
	if err != nil {
		return err
	}
	cerr := epoll.Control(func(epfd uintptr) {
		// Edges alone: a group that was removed is ready for ever.
		err = unix.EpollCtl(int(epfd), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)})
	})
	return errors.Join(cerr, os.NewSyscallError("epoll_ctl", err))
}

// subscribe asks version 1 to signal an eventfd when the group runs out of memory
// (Documentation/admin-guide/cgroup-v1/memory.rst).
func (o *OOM) subscribe() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	o.signal = os.NewFile(uintptr(fd), "eventfd")
	control := filepath.Join(filepath.Dir(o.counter.Name()), "cgroup.event_control")
	return writeWord(control, fmt.Sprintf("%d %d", fd, o.counter.Fd()))
}

// Wait blocks until something may have happened in a group. With version 1 that
// is when the group has run out of memory, so before anything is killed and
// counted. It may wake without a cause. After Close it returns an error.
func (a *Alarm) Wait() error {
	conn, err := a.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		var events [4]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			failed = os.NewSyscallError("epoll_wait", err)
		}
		return n > 0 || failed != nil
	})
	return errors.Join(err, failed)
}

// Close ends a Wait.
func (a *Alarm) Close() error { return a.epoll.Close() }
