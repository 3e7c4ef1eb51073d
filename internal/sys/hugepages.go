package sys

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Transparent huge pages make a small program large: where they are always on, as
// with Debian's kernels, the heap and the data of a shim take 2 MiB where one page
// of 4 KiB is in use. Whether a process has them is a flag of its
// address space (PR_SET_THP_DISABLE, prctl(2), since Linux 3.15), which children
// inherit, also over execve. By the time that a Go program's main runs it is too
// late to ask for none. So a shim gets the flag from who starts it, and takes care
// that containers don't.

// hugePages is held while the flag is as a start needs it.
var hugePages sync.Mutex

// StartSmall calls start, which starts a process, so that the process does without
// transparent huge pages.
func StartSmall(start func() error) error { return startWith(1, start) }

// StartPlain calls start, which starts a process, so that the process has
// transparent huge pages as the machine has them, even if this one does without.
func StartPlain(start func() error) error { return startWith(0, start) }

func startWith(disabled int, start func() error) error {
	hugePages.Lock()
	defer hugePages.Unlock()
	was, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	if err != nil || was == disabled { // a kernel that can't has none to bother with
		return start()
	}
	// It is about memory alone, and has no reason to fail.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, uintptr(disabled), 0, 0, 0)
	err = start()
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, uintptr(was), 0, 0, 0)
	return err
}
