package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// goroutines lists those of this process but the caller's own and those that
// the runtime, the testing package and os/signal keep.
func goroutines(places) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return parseStacks(string(buf[:n])), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}

// parseStacks takes a dump of all stacks, the caller's first, apart.
func parseStacks(dump string) map[string]string {
	list := map[string]string{}
	for i, stack := range strings.Split(strings.TrimSpace(dump), "\n\n") {
		head, body, _ := strings.Cut(stack, "\n")
		id, _, ok := strings.Cut(strings.TrimPrefix(head, "goroutine "), " ")
		if i == 0 || !ok || lasting(body) {
			continue
		}
		list[id] = stack
	}
	return list
}

// lasting tells whether a goroutine lives as long as the test binary does.
func lasting(stack string) bool {
	for _, frame := range []string{
		"testing.(*T).Run(",
		"testing.(*F).Fuzz(",
		"testing.runTests(",
		"testing.tRunner(",
		"testing.(*M).startAlarm",
		"os/signal.signal_recv(",
		"os/signal.loop(",
		"runtime.ensureSigM",
		"runtime/pprof.profileWriter",
	} {
		if strings.Contains(stack, frame) {
			return true
		}
	}
	return false
}

// children lists the processes whose parent is this one, zombies included. The
// start time is part of the identity, as pids come again.
func children(places) (map[string]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	self := strconv.Itoa(os.Getpid())
	list := map[string]string{}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // it ended meanwhile
		}
		if name, state, parent, start, ok := parseStat(string(stat)); ok && parent == self {
			list[entry.Name()+"@"+start] = fmt.Sprintf("%s (%s), state %s", entry.Name(), name, state)
		}
	}
	return list, nil
}

// parseStat takes a line of /proc/PID/stat apart; see proc_pid_stat(5). The
// name may hold anything, also ")".
func parseStat(line string) (name, state, parent, start string, ok bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return "", "", "", "", false
	}
	fields := strings.Fields(line[end+1:])
	const startField = 22 - 3 // the fields behind the name count from 3
	if len(fields) <= startField {
		return "", "", "", "", false
	}
	return line[open+1 : end], fields[0], fields[1], fields[startField], true
}

// mounts lists those of this process's mount namespace, by mount id, but not
// those that are another test's; see proc_pid_mountinfo(5).
func mounts(own places) (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	list := map[string]string{}
	for line := range strings.Lines(string(data)) {
		const pointField = 4
		if fields := strings.Fields(line); len(fields) > pointField && own.hold(fields[pointField]) {
			list[fields[0]] = strings.TrimSpace(line)
		}
	}
	return list, nil
}

// places are the beginnings of paths at which a test may mount.
type places []string

// tempMounts starts the names of the directories of mount.WithTemp.
const tempMounts = "berth-mount-"

// placesOf gives the places of a test, or of the test that it is a subtest of.
func placesOf(test string, dirs []string) places {
	test, _, _ = strings.Cut(test, "/")
	temp := filepath.Clean(os.TempDir()) + "/"
	own := places{temp + test, temp + tempMounts}
	for _, dir := range dirs {
		own = append(own, filepath.Clean(dir)+"/")
	}
	return own
}

// hold tells whether path lies in one of the places.
func (p places) hold(path string) bool {
	return slices.ContainsFunc(p, func(start string) bool { return strings.HasPrefix(path, start) })
}

// files lists the open file descriptors, but those of the Go runtime's poller
// and of this listing.
func files(places) (map[string]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := map[string]string{}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the descriptor of ReadDir itself
		}
		if err != nil {
			return nil, err
		}
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		list[entry.Name()+" "+target] = entry.Name() + ": " + target
	}
	return list, nil
}
