package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// deleteQuarantined deletes a task whose records can't be understood, if it can
// be shown that nothing of it runs.
func (t *Tasks) deleteQuarantined(ctx context.Context, k *task, v view) (record.Exit, error) {
	if err := t.proveDead(ctx, k); err != nil {
		return record.Exit{}, fmt.Errorf("quarantined (%s), and it is not certain that nothing of it runs: %w: %w",
			v.reason, err, errdefs.ErrFailedPrecondition)
	}
	exit := record.Exit{Status: statusUnobserved, ExitedAt: t.cfg.Now(), Reason: "quarantined: " + v.reason}
	if v.exit != nil {
		exit = *v.exit
	}
	if _, err := t.remains(ctx, k); err != nil {
		t.cfg.Log.Warn("remains of a quarantined task not removed by the shim", "namespace", k.ns, "id", k.id, "error", err)
	}
	if err := t.clear(k); err != nil {
		return record.Exit{}, err
	}
	t.drop(k)
	return exit, nil
}

// proveDead returns why a process of the task may still run; nil is proof that
// none does. It trusts no record that it can't read.
func (t *Tasks) proveDead(ctx context.Context, k *task) error {
	dialCtx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.Connect)
	defer cancel()
	at := k.contact()
	if foreign, err := readContact(k.dir); err == nil {
		at = foreign
	}
	c, err := t.dial(dialCtx, at, false)
	if err == nil {
		c.close()
		return errors.New("somebody listens on its shim's socket")
	}
	if dialAnswer(err) != refused {
		return fmt.Errorf("its shim's socket: %w", plain(err))
	}
	shim, err := readRecord[record.Shim](k.dir, record.ShimFile)
	if err == nil && shim != nil && lifeOf(shim.PID, shim.StartTime) == alive {
		return fmt.Errorf("its shim runs as process %d", shim.PID)
	}
	started, err := readRecord[record.Started](k.dir, record.StartedFile)
	if err == nil && started != nil && lifeOf(started.PID, started.StartTime) == alive {
		return fmt.Errorf("its init runs as process %d", started.PID)
	}
	if err := t.ociDead(k); err != nil {
		return err
	}
	return noTrace(k.dir, k.id)
}

// ociDead asks the OCI runtime's own state, which runc and its likes keep in
// ROOT/NAMESPACE/ID/state.json.
func (t *Tasks) ociDead(k *task) error {
	root := filepath.Join(t.cfg.State, ociDir, k.ns)
	if r, err := readRecord[record.Runtime](k.dir, record.RuntimeFile); err == nil && r != nil {
		root = r.Root
	}
	init, err := ociInit(filepath.Join(root, k.id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if lifeOf(init.PID, init.Start) == alive {
		return fmt.Errorf("its init runs as process %d", init.PID)
	}
	return nil
}

// ociProcess is init as the OCI runtime has it in its state.
type ociProcess struct {
	PID   int    `json:"init_process_pid"`
	Start uint64 `json:"init_process_start"`
}

// ociInit reads the state of a container of the OCI runtime's from its
// directory.
func ociInit(dir string) (ociProcess, error) {
	path := filepath.Join(dir, "state.json")
	var init ociProcess
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return init, err
	}
	if err == nil {
		err = json.Unmarshal(data, &init)
	}
	if err != nil {
		return init, fmt.Errorf("the OCI runtime's state %s: %w", path, plain(err))
	}
	if init.PID == 0 {
		return init, fmt.Errorf("the OCI runtime's state %s names no process", path)
	}
	return init, nil
}

// noTrace looks for processes that stand in the bundle, as shims do, or whose
// cgroup is named after the container, as those in it mostly are.
func noTrace(dir, id string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || sys.Zombie(pid) {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		if cwd, err := os.Readlink(filepath.Join(proc, "cwd")); err == nil && cwd == dir {
			return fmt.Errorf("process %s has the bundle as its working directory", e.Name())
		}
		cgroups, err := os.ReadFile(filepath.Join(proc, "cgroup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(cgroups)) {
			if inCgroupOf(strings.TrimSpace(line), id) {
				return fmt.Errorf("process %s is in cgroup %q", e.Name(), strings.TrimSpace(line))
			}
		}
	}
	return nil
}

// inCgroupOf tells whether a part of a cgroup's path is the container's id, or a
// systemd scope of it, such as "cri-containerd-ID.scope".
func inCgroupOf(line, id string) bool {
	_, path, _ := cutLast(line, ":")
	for part := range strings.SplitSeq(path, "/") {
		scope, isScope := strings.CutSuffix(part, ".scope")
		if part == id || isScope && (scope == id || strings.HasSuffix(scope, "-"+id)) {
			return true
		}
	}
	return false
}
