package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// recordInit records the process that a foreign shim has made.
func (t *Tasks) recordInit(k *task, pid int) error {
	return record.Write("runtime.started", k.dir, record.StartedFile, k.identify(pid))
}

// addExec makes the place for the records of an exec that was registered with a
// foreign shim. Nothing is recorded of one that has none, so that what comes
// after its end leaves nothing.
func (t *Tasks) addExec(k *task, exec string) {
	if !k.foreign() {
		return
	}
	if err := os.MkdirAll(execDir(k.dir, exec), 0o700); err != nil {
		t.cfg.Log.Warn("no place for the records of an exec", "namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	}
}

// recordExec records the process of an exec that a foreign shim has started.
func (t *Tasks) recordExec(k *task, exec string, pid int) {
	if !k.foreign() {
		return
	}
	err := record.Write("runtime.started", execDir(k.dir, exec), record.StartedFile, k.identify(pid))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
		t.cfg.Log.Warn("process of an exec not recorded", "namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	}
}

// removeExec removes the records of a foreign shim's exec that was deleted.
func (t *Tasks) removeExec(k *task, exec string) {
	if !k.foreign() {
		return
	}
	if err := removeTree(execDir(k.dir, exec)); err != nil {
		t.cfg.Log.Warn("records of a deleted exec not removed", "namespace", k.ns, "id", k.id, "exec", exec, "error", err)
	}
}

// recordTold records an exit of which a foreign shim's event tells, before
// anybody hears of it.
func (t *Tasks) recordTold(ns string, e *apievents.TaskExit, exec string) {
	k := t.find(ns, e.GetContainerId())
	if k == nil || !k.foreign() || !k.isInit(exec, int(e.GetPid())) || exec != "" && names.Identifier(exec) != nil {
		return
	}
	t.recordExit(k, exec, record.Exit{
		Version: record.Version, PID: int(e.GetPid()), Status: e.GetExitStatus(), ExitedAt: e.GetExitedAt().AsTime(),
	})
}

// recordExit records an exit of which a foreign shim has told, unless it is on
// record.
func (t *Tasks) recordExit(k *task, exec string, exit record.Exit) {
	dir := k.dir
	if exec != "" {
		dir = execDir(k.dir, exec)
	}
	if exit.PID == 0 {
		if started, err := readRecord[record.Started](dir, record.StartedFile); err == nil && started != nil {
			exit.PID = started.PID
		}
	}
	_, err := os.Lstat(filepath.Join(dir, record.ExitFile))
	if errors.Is(err, os.ErrNotExist) {
		err = record.Write("runtime.exit", dir, record.ExitFile, exit)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
		t.cfg.Log.Warn("exit not recorded", "namespace", k.ns, "id", k.id, "exec", exec, "status", exit.Status, "error", err)
	}
}

// identify gives the record of a process that a foreign shim tells of. A shim may
// tell a pid that is not one of this machine but of a virtual one, say, and then
// it is somebody else's here: one that may outlive the container, or be killed in
// its place. So a start time is recorded, which all that is done by pid depends
// on, only for a process that is the shim's or is in the container's control
// group.
func (k *task) identify(pid int) record.Started {
	started := record.Started{Version: record.Version, PID: pid}
	if pid <= 1 {
		return started
	}
	handle, err := sys.OpenProcess(pid)
	if err != nil {
		return started
	}
	defer handle.Close()
	k.mu.Lock()
	shim := k.shim
	k.mu.Unlock()
	if descends(pid, shim) || groupedAs(pid, k.id) {
		started.StartTime = handle.StartTime()
	}
	return started
}

// generations bounds how far up descends looks.
const generations = 64

// descends tells whether a process is a shim's, or the shim.
func descends(pid int, shim record.Shim) bool {
	if lifeOf(shim.PID, shim.StartTime) != alive {
		return false
	}
	for range generations {
		if pid == shim.PID {
			return true
		}
		stat, err := sys.ReadStat(pid)
		if err != nil || stat.PPID <= 1 {
			return false
		}
		pid = stat.PPID
	}
	return false
}

// groupedAs tells whether a process is in a control group that is named after a
// container.
func groupedAs(pid int, id string) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if inCgroupOf(strings.TrimSpace(line), id) {
			return true
		}
	}
	return false
}

// identifyShim gives the record of the shim at a place, by the pid that it tells.
// The pid counts only if it is that of a process which runs the shim's program, or
// was started with the environment that this daemon gives shims: it may be one of
// a virtual machine, and the shim's pid is killed when all else fails.
func (t *Tasks) identifyShim(k *task, at contact, pid int) record.Shim {
	made := record.Shim{Version: record.Version, Socket: at.Address, API: at.Version, Protocol: at.Protocol}
	if pid <= 1 || pid == os.Getpid() {
		return made
	}
	handle, err := sys.OpenProcess(pid)
	if err != nil {
		return made
	}
	defer handle.Close()
	if t.isShim(pid, k.view().intent.Binary) {
		made.PID, made.StartTime = pid, handle.StartTime()
	}
	return made
}

func (t *Tasks) isShim(pid int, binary string) bool {
	proc := fmt.Sprintf("/proc/%d/", pid)
	runs, err := os.Stat(proc + "exe")
	if err == nil {
		if program, err := os.Stat(binary); err == nil && os.SameFile(runs, program) {
			return true
		}
	}
	environ, err := os.ReadFile(proc + "environ")
	return err == nil && bytes.Contains(append([]byte{0}, environ...), []byte("\x00TTRPC_ADDRESS="+t.cfg.TTRPCAddress+"\x00"))
}
