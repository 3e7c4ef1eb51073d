package shim

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"time"
)

// When memory is given back to the kernel. A collection of garbage is no gain by
// itself: the first few take some 700 KiB for tables of the collector, which
// stay, and so does looking at the allocator's statistics. A shim that has done
// no more than to start its container is therefore left alone, as is one that
// has hardly grown since the last time.
const (
	trimTime   = time.Second // after the last call
	trimAbove  = 1700 << 10  // anonymous memory
	trimGrowth = 256 << 10   // since the last time
)

// trimmer gives memory back some time after the last call.
type trimmer struct {
	timer *time.Timer
	after int64 // anonymous memory after the last time; the timer's alone
}

func newTrimmer() *trimmer {
	t := &trimmer{}
	t.timer = time.AfterFunc(trimTime, t.trim)
	return t
}

// later puts it off.
func (t *trimmer) later() { t.timer.Reset(trimTime) }

func (t *trimmer) trim() {
	if held := anonymous(); held > max(trimAbove, t.after+trimGrowth) {
		debug.FreeOSMemory()
		t.after = anonymous()
	}
}

// anonymous is how much memory the process has that belongs to no file; 0 if the
// kernel doesn't tell.
func anonymous() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data) // size, resident, shared, ... in pages
	if len(fields) < 3 {
		return 0
	}
	resident, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	shared, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil {
		return 0
	}
	return (resident - shared) * int64(os.Getpagesize())
}
