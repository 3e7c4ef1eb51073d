package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

const namespace = "test"

// patience bounds what a test waits for.
const patience = 30 * time.Second

// binary is the shim under test, rootfs what its containers see. TestMain makes
// both.
var binary, rootfs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "berth-shim-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary, rootfs = filepath.Join(dir, "berth-shim"), filepath.Join(dir, "rootfs")
	if built := os.Getenv("BERTH_TEST_PROGRAMS"); built != "" { // on a machine without Go
		binary = filepath.Join(built, "berth-shim")
	} else if err := build(binary); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := makeRootfs(rootfs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Shims that are killed leave their containers to us.
	if err := sys.SetSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer removeGroups()
	return m.Run()
}

// ociRuntime is the name of the runtime that the tests run with.
func ociRuntime() string {
	if name := os.Getenv("BERTH_OCI_BINARY"); name != "" {
		return name
	}
	return "runc"
}

// removeGroups removes the cgroup above those of the containers.
func removeGroups() {
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test")
	for _, dir := range append(groups, "/sys/fs/cgroup/berth-shim-test") {
		_ = os.Remove(dir) // what is in use, or was never made, stays
	}
}

func build(path string) error {
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", path}
	cgo := "CGO_ENABLED=0"
	if raceFlag != "" {
		args, cgo = append(args, raceFlag), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// makeRootfs makes a root file system of one static busybox.
func makeRootfs(dir string) error {
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (Debian: apt-get install busybox-static)", err)
	}
	for _, name := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "busybox"), data, 0o755); err != nil {
		return err
	}
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "head", "dd", "true", "false", "stty", "kill", "yes", "id", "tty", "seq", "md5sum", "ps", "stat"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// fixture is one shim with its bundle.
type fixture struct {
	t       testing.TB
	d       *daemon
	id      string
	bundle  string
	ociRoot string // root of the OCI runtime
	socket  string
	cmd     *exec.Cmd
	exited  chan struct{}
	conn    *ttrpc.Client
	task    taskttrpc.TaskService
}

// spec is the OCI spec of a container that runs argv.
func spec(id string, argv ...string) map[string]any {
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": argv, "cwd": "/", "env": []string{"PATH=/bin"},
			"user":         map[string]any{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": []string{"CAP_KILL"}, "effective": []string{"CAP_KILL"}, "permitted": []string{"CAP_KILL"}},
		},
		"root":     map[string]any{"path": "rootfs"},
		"hostname": id,
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			map[string]any{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": map[string]any{
			"cgroupsPath": cgroupsPath(id),
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "ipc"},
				map[string]any{"type": "uts"}, map[string]any{"type": "network"},
			},
		},
	}
}

var ids struct {
	sync.Mutex
	n int
}

// newFixture starts a shim for a bundle whose config.json is sp(id). A string
// instead of a map is written as it is.
func newFixture(t testing.TB, sp func(id string) any) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	ids.Lock()
	ids.n++
	id := fmt.Sprintf("t%d-%d", os.Getpid(), ids.n)
	ids.Unlock()
	dir := shortDir(t)
	f := &fixture{t: t, d: newDaemon(t), id: id, bundle: filepath.Join(dir, "b"), ociRoot: filepath.Join(dir, "oci"), socket: filepath.Join(dir, "s")}
	if err := os.MkdirAll(filepath.Join(f.bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	config, ok := sp(id).(string)
	if !ok {
		data, err := json.Marshal(sp(id))
		if err != nil {
			t.Fatal(err)
		}
		config = string(data)
	}
	if err := os.WriteFile(filepath.Join(f.bundle, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	t.Cleanup(f.tearDown)
	return f
}

// container starts a shim for a container that runs argv.
func container(t testing.TB, argv ...string) *fixture {
	t.Helper()
	return newFixture(t, func(id string) any { return spec(id, argv...) })
}

// start starts the shim as the daemon does.
func (f *fixture) start() {
	f.t.Helper()
	_ = os.Remove(f.socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.socket, Net: "unix"})
	if err != nil {
		f.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	socket, err := l.File()
	if err != nil {
		f.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(f.bundle, "shim.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	f.cmd = exec.Command(binary, "serve", "-namespace", namespace, "-id", f.id, "-bundle", f.bundle, "-debug")
	f.cmd.Dir = f.bundle
	f.cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+f.d.path, "GOMAXPROCS=1", "BERTH_OCI_ROOT="+f.ociRoot)
	f.cmd.ExtraFiles = []*os.File{socket}
	f.cmd.Stdout, f.cmd.Stderr = log, log
	f.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := sys.StartSmall(f.cmd.Start); err != nil {
		f.t.Fatal(err)
	}
	for _, c := range []io.Closer{socket, log, l} {
		_ = c.Close()
	}
	f.exited = make(chan struct{})
	go func() {
		_ = f.cmd.Wait()
		close(f.exited)
	}()
	start, err := sys.StartTime(f.cmd.Process.Pid)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := record.Write("test", f.bundle, record.ShimFile, record.Shim{Version: 1, PID: f.cmd.Process.Pid, StartTime: start, Socket: f.socket}); err != nil {
		f.t.Fatal(err)
	}
	f.dial()
}

// dial connects to the shim.
func (f *fixture) dial() {
	conn, err := net.Dial("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.conn = ttrpc.NewClient(conn)
	f.task = taskttrpc.NewTaskClient(f.conn)
}

// ctx bounds a call.
func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	f.t.Cleanup(cancel)
	return ctx
}

// rootfsMounts binds the shared root file system, read-only.
func rootfsMounts() []*types.Mount {
	return []*types.Mount{{Type: "bind", Source: rootfs, Options: []string{"rbind", "ro"}}}
}

// create creates the task with r's stdio.
func (f *fixture) create(r *task.CreateTaskRequest) int {
	f.t.Helper()
	answer, err := f.tryCreate(r)
	if err != nil {
		f.t.Fatalf("create: %v", err)
	}
	return int(answer.Pid)
}

func (f *fixture) tryCreate(r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	r.Id, r.Bundle = f.id, f.bundle
	if r.Rootfs == nil {
		r.Rootfs = rootfsMounts()
	}
	if err := driver(r); err != nil {
		f.t.Fatal(err)
	}
	return f.task.Create(f.ctx(), r)
}

// run creates and starts.
func (f *fixture) run(r *task.CreateTaskRequest) int {
	f.t.Helper()
	pid := f.create(r)
	f.startTask("")
	return pid
}

func (f *fixture) startTask(exec string) int {
	f.t.Helper()
	answer, err := f.task.Start(f.ctx(), &task.StartRequest{Id: f.id, ExecId: exec})
	if err != nil {
		f.t.Fatalf("start %q: %v", exec, err)
	}
	return int(answer.Pid)
}

// wait waits for a process and compares its status.
func (f *fixture) wait(exec string, want uint32) {
	f.t.Helper()
	answer, err := f.task.Wait(f.ctx(), &task.WaitRequest{Id: f.id, ExecId: exec})
	if err != nil {
		f.t.Fatalf("wait %q: %v", exec, err)
	}
	if answer.ExitStatus != want || answer.ExitedAt == nil {
		f.t.Fatalf("wait %q: status %d at %v, want %d", exec, answer.ExitStatus, answer.ExitedAt, want)
	}
}

func (f *fixture) kill(exec string, sig unix.Signal) {
	f.t.Helper()
	if _, err := f.task.Kill(f.ctx(), &task.KillRequest{Id: f.id, ExecId: exec, Signal: uint32(sig)}); err != nil {
		f.t.Fatalf("kill %q: %v", exec, err)
	}
}

func (f *fixture) delete(exec string) *task.DeleteResponse {
	f.t.Helper()
	answer, err := f.task.Delete(f.ctx(), &task.DeleteRequest{Id: f.id, ExecId: exec})
	if err != nil {
		f.t.Fatalf("delete %q: %v", exec, err)
	}
	return answer
}

// exec registers an exec that runs argv.
func (f *fixture) exec(id string, r *task.ExecProcessRequest, argv ...string) {
	f.t.Helper()
	if err := f.tryExec(id, r, argv...); err != nil {
		f.t.Fatalf("exec %q: %v", id, err)
	}
}

func (f *fixture) tryExec(id string, r *task.ExecProcessRequest, argv ...string) error {
	process := map[string]any{"args": argv, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}, "terminal": r.Terminal}
	value, err := json.Marshal(process)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Id, r.ExecId = f.id, id
	r.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: value}
	_, err = f.task.Exec(f.ctx(), r)
	return err
}

// code compares the code of a call's error.
func code(t testing.TB, call string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v: code %s, want %s", call, err, got, want)
	}
}

// leave tells a shim to leave. It may be gone before the client has looked at the answer.
func leave(ctx context.Context, shim taskttrpc.TaskService, id string) error {
	_, err := shim.Shutdown(ctx, &task.ShutdownRequest{Id: id})
	if errors.Is(err, ttrpc.ErrClosed) {
		return nil
	}
	return err
}

// shutdown ends the shim as the daemon does, and checks that it leaves nothing.
func (f *fixture) shutdown() {
	f.t.Helper()
	if err := leave(f.ctx(), f.task, f.id); err != nil {
		f.t.Errorf("shutdown: %v", err)
	}
	select {
	case <-f.exited:
	case <-time.After(patience):
		f.t.Fatal("the shim does not leave")
	}
	if state := f.cmd.ProcessState; !state.Success() {
		f.t.Errorf("shim: %v", state)
	}
}

// tearDown ends what the test left, and checks that nothing else is there.
func (f *fixture) tearDown() {
	_ = f.conn.Close()
	select {
	case <-f.exited:
	default:
		_ = f.cmd.Process.Kill()
		<-f.exited
	}
	if f.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(f.bundle, "shim.log"))
		f.t.Logf("shim.log:\n%s", log)
	}
	cmd := exec.Command(binary, "delete", "-namespace", namespace, "-id", f.id, "-bundle", f.bundle)
	cmd.Env = append(os.Environ(), "BERTH_OCI_ROOT="+f.ociRoot)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Errorf("delete: %v\n%s", err, out)
	}
	f.checkClean()
}

// checkClean fails the test if mounts, cgroups or processes are left.
func (f *fixture) checkClean() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.t.Fatal(err)
	}
	if strings.Contains(string(mounts), f.bundle) {
		f.t.Errorf("mounts are left below %s", f.bundle)
	}
	if groups := groupsLeft(f.id); len(groups) > 0 {
		f.t.Errorf("cgroups are left: %v", groups)
	}
	if entries, _ := os.ReadDir(filepath.Join(f.ociRoot, namespace)); len(entries) > 0 {
		f.t.Errorf("the OCI runtime still knows %v", entries)
	}
}
