// Package cgroup owns reading control groups: where a process's groups are,
// which processes are in them, and what they have used, encoded as the wire's
// metrics. It makes none and sets no limits; the OCI runtime does. It thaws what
// has to be killed, and removes what a runtime leaves.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNone is what Of returns for a process that is in no group of its own: the
// root's, or the same as the asking process's.
var ErrNone = errors.New("process has no cgroup of its own")

// Group are the control groups of one process: a directory of the unified
// hierarchy (version 2), or one per controller (version 1; also where version 2
// is mounted beside it without controllers).
type Group struct {
	Unified     string            // directory; "" with version 1
	Controllers map[string]string // directory by controller; nil with version 2
}

// Of finds the groups of a process.
func Of(pid int) (Group, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Group{}, err
	}
	paths, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return Group{}, fmt.Errorf("cgroups of process %d: %w", pid, err)
	}
	mounts, err := hierarchies()
	if err != nil {
		return Group{}, err
	}
	g := find(parsePaths(paths), parsePaths(own), mounts)
	if g.Unified == "" && len(g.Controllers) == 0 {
		return Group{}, fmt.Errorf("cgroups of process %d: %w", pid, ErrNone)
	}
	return g, nil
}

// MountsVariable names the environment variable in which a daemon tells its shims
// what Mounts has told it.
const MountsVariable = "BERTH_CGROUP_MOUNTS"

// mounts are the lines of mountinfo about hierarchies, read once: on a machine with
// many containers the table of mounts is long, and these are not moved about.
var mounts = sync.OnceValues(func() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	return hierarchyLines(data), err
})

// maxMounts bounds what Mounts tells, in bytes. An environment variable has room for
// 128 KiB (MAX_ARG_STRLEN), and more than that keeps the process from being started.
const maxMounts = 64 << 10

// Mounts tells where the hierarchies are mounted, for UseMounts in a process of the
// same mount namespace. It is empty where that can't be read, or is too much.
func Mounts() string {
	lines, _ := mounts()
	if len(lines) > maxMounts {
		return ""
	}
	return lines
}

// UseMounts has this package take the word of another process for where the
// hierarchies are mounted, unless that is empty. It has to be called before all else.
func UseMounts(lines string) {
	if lines != "" {
		mounts = func() (string, error) { return lines, nil }
	}
}

var hierarchies = sync.OnceValues(func() (map[string]place, error) {
	lines, err := mounts()
	return parseMounts([]byte(lines)), err
})

// find turns the paths of a process into directories. Where it shares its group
// with us, what the group holds says nothing about it.
func find(paths, own map[string]string, mounts map[string]place) Group {
	g := Group{Controllers: map[string]string{}}
	for controller, path := range paths {
		at, ok := mounts[controller]
		if !ok || path == "/" || path == own[controller] {
			continue
		}
		dir, ok := at.directory(path)
		switch {
		case !ok:
		case controller == "":
			g.Unified = dir
		default:
			g.Controllers[controller] = dir
		}
	}
	if len(g.Controllers) > 0 {
		g.Unified = "" // a hybrid: version 2 has no controllers
	} else {
		g.Controllers = nil
	}
	return g
}

// parsePaths reads /proc/PID/cgroup: path by controller, "" being version 2.
func parsePaths(data []byte) map[string]string {
	paths := map[string]string{}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			paths[controller] = parts[2]
		}
	}
	return paths
}

// place is where a hierarchy is mounted: root of it at dir.
type place struct{ root, dir string }

// usualDir is where hierarchies are mounted for all to see.
const usualDir = "/sys/fs/cgroup"

// usual tells whether a hierarchy is mounted where everybody looks for it, rather
// than in a chroot, say, that may go at any time.
func (p place) usual() bool { return p.dir == usualDir || strings.HasPrefix(p.dir, usualDir+"/") }

// directory returns where a path of the hierarchy is, if it is below the mount.
func (p place) directory(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(p.root, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return filepath.Join(p.dir, rest), true
}

// hierarchyLines picks the lines of mountinfo that parseMounts may heed.
func hierarchyLines(data []byte) string {
	var lines strings.Builder
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte(" - cgroup")) {
			lines.Write(line)
		}
	}
	return lines.String()
}

// parseMounts reads mountinfo (proc_pid_mountinfo(5)): where the hierarchy of
// each controller is mounted, "" being version 2. Of several places the usual one
// counts, else the last.
func parseMounts(data []byte) map[string]place {
	mounts := map[string]place{}
	add := func(controller string, at place) {
		if at.usual() || !mounts[controller].usual() {
			mounts[controller] = at
		}
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 {
			continue
		}
		at := place{root: fields[3], dir: unescape(fields[4])}
		switch fields[dash+1] {
		case "cgroup2":
			add("", at)
		case "cgroup":
			for option := range strings.SplitSeq(fields[dash+3], ",") {
				add(option, at)
			}
		}
	}
	return mounts
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// any returns one directory that has every process of the group.
func (g Group) any() string {
	if g.Unified != "" {
		return g.Unified
	}
	for _, controller := range []string{"pids", "memory", "cpu", "devices", "freezer"} {
		if dir, ok := g.Controllers[controller]; ok {
			return dir
		}
	}
	for _, dir := range g.Controllers {
		return dir
	}
	return ""
}

// Processes lists the processes in the group and the groups below it, in
// ascending order.
func (g Group) Processes() ([]int, error) {
	var pids []int
	root := g.any()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // removed while we walk
		}
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return nil
		}
		here, err := readPIDs(filepath.Join(path, "cgroup.procs"))
		pids = append(pids, here...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("processes of cgroup: %w", err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func readPIDs(path string) ([]int, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var pids []int
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if pid > 0 { // 0 is a process that our pid namespace doesn't have
			pids = append(pids, pid)
		}
	}
	if err := lines.Err(); !errors.Is(err, unix.EOPNOTSUPP) { // a threaded group has none
		return pids, err
	}
	return pids, nil
}

// maxFile bounds what is read of a file of the kernel's.
const maxFile = 64 << 10

// readFile reads a small file; nil if it isn't there.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) { // pressure that is switched off
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // the group was just removed, or lacks the controller
	}
	return bytes.TrimSpace(data), err
}
