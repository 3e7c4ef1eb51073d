package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/runtime/record"
)

// buildShim builds berth-shim once per run of the tests.
var buildShim = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("BERTH_TEST_PROGRAMS"); dir != "" { // on a machine without Go
		return filepath.Join(dir, "berth-shim"), nil
	}
	dir, err := os.MkdirTemp("", "berth-runtime-test-")
	if err != nil {
		return "", err
	}
	built = append(built, dir)
	path := filepath.Join(dir, "berth-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/berthd/berth/cmd/berth-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build berth-shim: %w\n%s", err, out)
	}
	return path, nil
})

// built is what TestMain removes.
var built []string

// newRealMachine is newMachine with the real shim, runc, and a root file system
// of one static busybox.
func newRealMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	needed.Program(t, "runc")
	shim, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	m.shim = shim
	m.deadlines = Deadlines{Events: time.Second, Retry: 50 * time.Millisecond}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		needed.Missing(t, err)
	}
	rootfs := filepath.Join(m.dir, "rootfs")
	for _, dir := range []string{"bin", "proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin", "busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "sleep", "true", "cat", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { noCgroups(t, filepath.Base(m.dir)) })
	return m
}

// noCgroups fails the test over cgroups of its containers that are left.
func noCgroups(t *testing.T, parent string) {
	found, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent + "/*")
	more, _ := filepath.Glob("/sys/fs/cgroup/" + parent + "/*")
	for _, path := range append(found, more...) {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			t.Errorf("left behind: %s", path)
		}
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
	for _, path := range append(parents, "/sys/fs/cgroup/"+parent) {
		_ = os.Remove(path) // made by runc on the way, shared by the test's containers
	}
}

// realContainer is a container that runs argv.
func (m *machine) realContainer(id string, argv ...string) *containers.Container {
	ns := func(kinds ...string) (list []any) {
		for _, kind := range kinds {
			list = append(list, map[string]any{"type": kind})
		}
		return list
	}
	spec, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": argv, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": []string{"CAP_KILL"}},
		},
		"root": map[string]any{"path": "rootfs"},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		},
		"linux": map[string]any{
			"cgroupsPath": "/" + filepath.Base(m.dir) + "/" + id,
			"namespaces":  ns("pid", "mount", "ipc", "uts", "network"),
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return &containers.Container{
		Id: id, Runtime: &containers.Container_Runtime{Name: RuntimeRunc},
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: spec},
	}
}

// rootfs makes the overlay that a container is to have as its root.
func (m *machine) rootfs(id string) []*types.Mount {
	m.t.Helper()
	layer := filepath.Join(m.dir, "layers", id)
	for _, dir := range []string{"fs", "work"} {
		if err := os.MkdirAll(filepath.Join(layer, dir), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	return []*types.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + filepath.Join(m.dir, "rootfs"), "upperdir=" + layer + "/fs", "workdir=" + layer + "/work",
	}}}
}

// createReal makes a task with the real shim.
func (d *daemon) createReal(id string, o *runc.Options, argv ...string) error {
	request := &tasks.CreateTaskRequest{ContainerId: id, Rootfs: d.m.rootfs(id)}
	if o != nil {
		request.Options = packed(d.m.t, o)
	}
	_, err := d.Create(d.m.t.Context(), testNS, d.m.realContainer(id, argv...), request)
	return err
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

func (d *daemon) runReal(id string, argv ...string) {
	d.m.t.Helper()
	if err := d.createReal(id, nil, argv...); err != nil {
		d.m.t.Fatal(err)
	}
	d.runStarted(id)
}

// ready waits until a container has made its file /ready.
func (m *machine) ready(id string) {
	m.t.Helper()
	path := filepath.Join(m.dir, "layers", id, "fs", "ready")
	m.eventually("ready", func() error { _, err := os.Stat(path); return err })
}

// TestRealRestart ends a container while there is no daemon, with the real shim.
func TestRealRestart(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runReal("a", "sh", "-c", "trap 'exit 7' TERM; : >/ready; while :; do sleep 0.02; done")
	m.expect("/tasks/create a", "/tasks/start a")
	d.runReal("b", "sleep", "1000")
	m.expect("/tasks/create b", "/tasks/start b")
	m.ready("a")
	pid := int(d.Report()[0].PID)
	d.stop()
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.ended(pid)
	d = m.start()
	if got := d.listed(); !strings.HasSuffix(got, "b RUNNING") {
		t.Error(got)
	}
	d.end("a", 7)
	m.expect("/tasks/exit a 7", "/tasks/delete a 7")
	d.verdict("b", "connected")
	if err := d.kill("b", 9); err != nil {
		t.Fatal(err)
	}
	d.end("b", 137)
	m.expect("/tasks/exit b 137", "/tasks/delete b 137")
}

// TestRealShimKilled kills the real shim: the container runs on, its status is
// known, and all of it can be removed.
func TestRealShimKilled(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runReal("a", "sh", "-c", "trap 'exit 9' TERM; : >/ready; while :; do sleep 0.02; done")
	m.expect("/tasks/create a", "/tasks/start a")
	m.ready("a")
	d.stop()
	m.killShim(d.find(testNS, "a").dir)
	d = m.start()
	d.verdict("a", "shim-lost")
	pids, err := d.ListPids(t.Context(), testNS, &tasks.ListPidsRequest{ContainerId: "a"})
	if init := d.find(testNS, "a").view().init.PID; err != nil || !slices.ContainsFunc(pids.Processes, func(p *apitask.ProcessInfo) bool { return int(p.Pid) == init }) {
		t.Errorf("pids: %v, %v; want %d among them", pids, err, init)
	}
	if err := d.kill("a", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	d.end("a", 9)
	m.expect("/tasks/exit a 9", "/tasks/delete a 9")
}

// TestRealPausedShimKilled kills the shim of a paused task, which can then still
// be killed: a cgroup of version 1 holds frozen processes back even from that.
func TestRealPausedShimKilled(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runReal("a", "sleep", "1000")
	if err := d.Pause(t.Context(), testNS, &tasks.PauseTaskRequest{ContainerId: "a"}); err != nil {
		t.Fatal(err)
	}
	m.killShim(d.find(testNS, "a").dir)
	d.verdict("a", "shim-lost")
	if got := d.state("a"); got != "PAUSED 0" {
		t.Error(got)
	}
	if err := d.kill("a", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
}

// TestBadRuntime drives OCI runtimes that are missing, fail or hang. Each gives
// a clear error, nothing is left, and the same task can be made afterwards.
func TestBadRuntime(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"missing": {"", "no such file or directory"},
		"fails":   {"echo 'msg=\"it broke\"' >&2; exit 1", "it broke"},
		"hangs":   {`case "$*" in *create*) exec sleep 1000;; *) exec runc "$@";; esac`, "create"},
		"hangs after it made the container": {
			`case "$*" in *create*) runc "$@"; exec sleep 1000;; *) exec runc "$@";; esac`, "create"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRealMachine(t)
			m.deadlines.Create = 3 * time.Second
			if os.Getenv("BERTH_VM") != "" { // an emulated machine needs as long for a create that succeeds
				m.deadlines.Create = 15 * time.Second
			}
			d := m.start()
			binary := filepath.Join(m.dir, "bad-runc")
			if c.script != "" {
				if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			begin := time.Now()
			err := d.createReal("a", &runc.Options{BinaryName: binary}, "true")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			t.Logf("after %s: %v", time.Since(begin).Round(time.Millisecond), err)
			if errdefs.IsNotFound(err) || strings.HasPrefix(name, "hangs") != errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("kind of %v", err)
			}
			if len(d.Report()) != 0 {
				t.Fatalf("left: %+v", d.Report())
			}
			m.noLeftovers()
			m.expect()
			d.runReal("a", "true")
			d.end("a", 0)
		})
	}
}

// TestRealMany makes, runs and deletes many at once.
func TestRealMany(t *testing.T) {
	const n = 50
	m := newRealMachine(t)
	d := m.start()
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("c%02d", i)
			if err := d.createReal(id, nil, "sh", "-c", fmt.Sprintf("exit %d", i)); err != nil {
				t.Error(err)
				return
			}
			if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: id}); err != nil {
				t.Error(err)
				return
			}
			if status, err := d.wait(id, ""); err != nil || status != uint32(i) {
				t.Error(id, status, err)
			}
			if status, err := d.delete(id); err != nil || status != uint32(i) {
				t.Error(id, status, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d containers in %s", n, time.Since(begin).Round(time.Millisecond))
	m.eventually("every event once", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.events) != 4*n {
			return fmt.Errorf("%d events: %q", len(m.events), m.events)
		}
		return nil
	})
}

// TestRealQuarantine spoils every record of a real task: only once its processes
// are gone is it deleted.
func TestRealQuarantine(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runReal("a", "sleep", "1000")
	dir, pid := d.find(testNS, "a").dir, int(d.Report()[0].PID)
	d.stop()
	m.killShim(dir)
	for _, file := range []string{record.IntentFile, record.ShimFile, record.StartedFile, record.RuntimeFile} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = m.start()
	d.verdict("a", "quarantined")
	state := filepath.Join(m.dir, ociDir, testNS, "a", "state.json")
	want := fmt.Sprint("its init runs as process ", pid)
	if _, err := os.Stat(state); errors.Is(err, os.ErrNotExist) { // crun's has another name and form
		state, want = filepath.Join(filepath.Dir(state), "status"), "is in cgroup"
	}
	if _, err := d.delete("a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Fatal(err)
	}
	// Without the runtime's state, the cgroup gives it away.
	if err := os.Rename(state, state+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.delete("a"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "is in cgroup") {
		t.Fatal(err)
	}
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	m.ended(pid)
	m.eventually("deleted", func() error { _, err := d.delete("a"); return err })
	if points, _ := filepath.Glob(filepath.Join(m.dir, bundlesDir, "*", "*", "rootfs")); len(points) != 0 {
		t.Error(points)
	}
	if err := mount.UnmountAll(dir); err != nil {
		t.Error(err)
	}
}
