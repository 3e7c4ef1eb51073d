package shim

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// When memory is given back to the kernel. A collection of garbage is no gain by
// itself: the first few take 700 KiB and more for tables of the collector, which
// stay, and so does looking at the allocator's statistics. A shim that has done
// little is therefore left alone, for as long as it has less than it would have
// after a collection, as is one that has hardly grown since the last time.
const (
	trimTime   = time.Second // after the last call
	trimAbove  = 2500 << 10  // anonymous memory
	trimGrowth = 256 << 10   // since the last time
	// programAbove is how much of the program may stay mapped: a shim at rest
	// needs less, and a call takes what it needs from the page cache again, for
	// some 0.1 ms.
	programAbove = 3 << 20
)

// trimmer gives memory back some time after the last call.
type trimmer struct {
	timer *time.Timer

	mu    sync.Mutex // one at a time: a timer that is put off may run twice at once
	after int64      // anonymous memory after the last time
}

func newTrimmer() *trimmer {
	t := &trimmer{}
	t.timer = time.AfterFunc(trimTime, t.trim)
	return t
}

// later puts it off.
func (t *trimmer) later() { t.timer.Reset(trimTime) }

func (t *trimmer) trim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	held, program := resident()
	if held > max(trimAbove, t.after+trimGrowth) {
		debug.FreeOSMemory()
		t.after, program = resident()
	}
	if program > programAbove {
		releaseProgram()
	}
}

// resident is how much memory the process has that belongs to no file, and how
// much of files; 0 if the kernel doesn't tell.
func resident() (anonymous, files int64) {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, 0
	}
	fields := bytes.Fields(data) // size, resident, shared, ... in pages
	if len(fields) < 3 {
		return 0, 0
	}
	all, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0, 0
	}
	shared, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil {
		return 0, 0
	}
	page := int64(os.Getpagesize())
	return (all - shared) * page, shared * page
}

// releaseProgram unmaps the pages of the program that can't be written to, most
// of which were needed to start. Whichever is touched again comes back from the
// page cache. Other shims' are not concerned.
func releaseProgram() {
	data, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line) // address, permissions, offset, device, inode, path
		if len(fields) < 6 || fields[1][1] == 'w' || string(bytes.Join(fields[5:], []byte(" "))) != program {
			continue
		}
		from, to, _ := bytes.Cut(fields[0], []byte("-"))
		start, serr := strconv.ParseUint(string(from), 16, 64)
		end, eerr := strconv.ParseUint(string(to), 16, 64)
		if serr != nil || eerr != nil || end <= start {
			continue
		}
		// It is advice; without it they stay.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
	}
}
