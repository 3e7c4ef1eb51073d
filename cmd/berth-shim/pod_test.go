package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	tasktypes "github.com/berthd/berth/api/types/task"
)

// pod is a shim that serves several containers, started as other daemons do.
type pod struct {
	t       *testing.T
	d       *daemon
	dir     string
	prefix  string // of the containers' ids, so that their cgroups are this test's
	address string
	pid     int
	conn    *ttrpc.Client
	task    taskttrpc.TaskService
}

func newPod(t *testing.T) *pod {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	p := &pod{t: t, d: newDaemon(t), dir: shortDir(t)}
	p.prefix = filepath.Base(p.dir)
	t.Cleanup(p.tearDown)
	return p
}

// id is the full id of a container.
func (p *pod) id(name string) string { return p.prefix + "-" + name }

func (p *pod) bundle(name string) string { return filepath.Join(p.dir, name) }

// command is a command of the shim for a container, in its bundle.
func (p *pod) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"-namespace", namespace, "-address", filepath.Join(p.dir, "none"), "-publish-binary", "/none", "-id", p.id(name)}, args...)...)
	cmd.Dir = p.bundle(name)
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+p.d.path, "BERTH_OCI_ROOT="+filepath.Join(p.dir, "oci"))
	return cmd
}

// start runs start; daemons read both its outputs together.
func (p *pod) start(name string) (string, error) {
	out, err := p.command(name, "start").CombinedOutput()
	return string(out), err
}

// furnish makes the bundle of a container.
func (p *pod) furnish(name string, argv ...string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Join(p.bundle(name), "rootfs"), 0o711); err != nil {
		p.t.Fatal(err)
	}
	config := spec(p.id(name), argv...)
	config["annotations"] = map[string]any{"io.kubernetes.cri.sandbox-id": p.prefix}
	data, err := json.Marshal(config)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.bundle(name), "config.json"), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// join has start find or make the shim.
func (p *pod) join(name string) {
	p.t.Helper()
	address, err := p.start(name)
	if err != nil || p.address != "" && p.address != address {
		p.t.Fatalf("start: %q, %v; the pod's shim is at %q", address, err, p.address)
	}
	if p.conn != nil {
		return
	}
	p.address = address
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.conn = ttrpc.NewClient(conn)
	p.task = taskttrpc.NewTaskClient(p.conn)
	answer, err := p.task.Connect(p.t.Context(), &task.ConnectRequest{Id: p.id(name)})
	if err != nil {
		p.t.Fatal(err)
	}
	p.pid = int(answer.ShimPid)
}

// run makes a container of the pod and starts it.
func (p *pod) run(name string, argv ...string) {
	p.t.Helper()
	p.furnish(name, argv...)
	p.join(name)
	_, err := p.task.Create(p.t.Context(), &task.CreateTaskRequest{Id: p.id(name), Bundle: p.bundle(name), Rootfs: rootfsMounts()})
	if err == nil {
		_, err = p.task.Start(p.t.Context(), &task.StartRequest{Id: p.id(name)})
	}
	if err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
}

func (p *pod) wait(name string, want uint32) {
	p.t.Helper()
	answer, err := p.task.Wait(p.t.Context(), &task.WaitRequest{Id: p.id(name)})
	if err != nil || answer.ExitStatus != want {
		p.t.Fatalf("%s: %v, %v, want %d", name, answer, err, want)
	}
}

// end kills a container and deletes it, with its bundle.
func (p *pod) end(name string) {
	p.t.Helper()
	if _, err := p.task.Kill(p.t.Context(), &task.KillRequest{Id: p.id(name), Signal: uint32(unix.SIGKILL)}); err != nil {
		p.t.Fatal(err)
	}
	p.wait(name, 137)
	p.remove(name, 137)
}

// remove deletes a container that has ended, with its bundle.
func (p *pod) remove(name string, want uint32) {
	p.t.Helper()
	if answer, err := p.task.Delete(p.t.Context(), &task.DeleteRequest{Id: p.id(name)}); err != nil || answer.ExitStatus != want {
		p.t.Fatalf("%s: %v, %v, want %d", name, answer, err, want)
	}
	if err := os.RemoveAll(p.bundle(name)); err != nil {
		p.t.Fatal(err)
	}
}

// status of the exec of a container that runs argv.
func (p *pod) exec(name string, argv ...string) uint32 {
	p.t.Helper()
	value, err := json.Marshal(map[string]any{"args": argv, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, id := p.t.Context(), p.id(name)
	if _, err = p.task.Exec(ctx, &task.ExecProcessRequest{Id: id, ExecId: "x", Spec: jsonAny("types.containerd.io/opencontainers/runtime-spec/1/Process", string(value))}); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.task.Start(ctx, &task.StartRequest{Id: id, ExecId: "x"}); err != nil {
		p.t.Fatal(err)
	}
	answer, err := p.task.Wait(ctx, &task.WaitRequest{Id: id, ExecId: "x"})
	if err == nil {
		_, err = p.task.Delete(ctx, &task.DeleteRequest{Id: id, ExecId: "x"})
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return answer.ExitStatus
}

// lastWord runs delete for a container and gives its exit status.
func (p *pod) lastWord(name string) (uint32, error) {
	cmd := p.command(name, "-bundle", p.bundle(name), "delete")
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if errOut.Len() > 0 {
		p.t.Logf("delete of %s: %s", name, errOut.String())
	}
	if err != nil {
		return 0, err
	}
	var answer task.DeleteResponse
	err = proto.Unmarshal(out, &answer)
	return answer.ExitStatus, err
}

// shutdown calls Shutdown and waits until the shim has left.
func (p *pod) shutdown() {
	p.t.Helper()
	if err := leave(p.t.Context(), p.task, ""); err != nil {
		p.t.Fatal(err)
	}
	p.gone()
}

// gone waits until the shim is, and its socket.
func (p *pod) gone() {
	p.t.Helper()
	for end := time.Now().Add(patience); unix.Kill(p.pid, 0) == nil; time.Sleep(time.Millisecond) {
		_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil) // start left it to us
		if time.Now().After(end) {
			p.t.Fatal("the shim does not leave")
		}
	}
	_ = p.conn.Close()
	p.conn = nil
}

func (p *pod) tearDown() {
	if p.conn != nil {
		if p.t.Failed() {
			for _, path := range p.logs() {
				data, _ := os.ReadFile(path)
				p.t.Logf("%s:\n%s", path, data)
			}
		}
		_ = unix.Kill(p.pid, unix.SIGKILL)
		p.gone()
	}
	bundles, _ := filepath.Glob(filepath.Join(p.dir, "*", "config.json"))
	for _, config := range bundles {
		if _, err := p.lastWord(filepath.Base(filepath.Dir(config))); err != nil {
			p.t.Error(err)
		}
	}
	if path := strings.TrimPrefix(p.address, "unix://"); path != "" {
		if _, err := os.Lstat(path); err == nil {
			p.t.Errorf("socket %s is left", path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), p.dir+"/") {
		p.t.Errorf("mounts are left below %s, %v", p.dir, err)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test/" + p.prefix + "-*")
	unified, _ := filepath.Glob("/sys/fs/cgroup/berth-shim-test/" + p.prefix + "-*")
	if groups = append(groups, unified...); len(groups) > 0 {
		p.t.Errorf("cgroups are left: %v", groups)
	}
	if entries, _ := os.ReadDir(filepath.Join(p.dir, "oci", namespace)); len(entries) > 0 {
		p.t.Errorf("the OCI runtime still knows %v", entries)
	}
}

// logs are the shim logs of the pod.
func (p *pod) logs() []string {
	found, _ := filepath.Glob(filepath.Join(p.dir, "*", "shim.log"))
	return found
}

// of gives the events of one container.
func (p *pod) of(name string) []string {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	var list []string
	for _, e := range p.d.events {
		if strings.Contains(e, p.id(name)) {
			list = append(list, strings.ReplaceAll(strings.TrimPrefix(e, "/tasks/"), " "+p.id(name), ""))
		}
	}
	return list
}

// TestPodLives has containers of one shim live independently: one that ends and is
// deleted, first of all the one that the shim was started for, does nothing to
// the others.
func TestPodLives(t *testing.T) {
	p := newPod(t)
	p.run("a", "sleep", "1000")
	p.run("b", "sleep", "1000")
	p.run("c", "sh", "-c", "exit 3")
	p.wait("c", 3)
	p.end("a")
	p.remove("c", 3)
	if got := p.exec("b", "sh", "-c", "exit 5"); got != 5 {
		t.Errorf("exec after others were deleted: %d", got)
	}
	p.run("d", "sleep", "1000") // the shim's first working directory is gone
	logs := p.logs()
	if len(logs) != 1 {
		t.Fatalf("logs %q", logs)
	}
	if data, err := os.ReadFile(logs[0]); err != nil || !strings.Contains(string(data), "task="+p.id("d")) {
		t.Errorf("log %s does not go on: %q, %v", logs[0], data, err)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid)); err != nil || cwd != p.bundle("b") {
		t.Errorf("working directory %q, %v", cwd, err)
	}
	if _, err := p.task.Shutdown(t.Context(), &task.ShutdownRequest{Id: p.id("a")}); err != nil {
		t.Fatal(err)
	}
	answer, err := p.task.State(t.Context(), &task.StateRequest{Id: p.id("b")})
	if err != nil || answer.Status != tasktypes.Status_RUNNING {
		t.Fatal(answer, err)
	}
	p.end("b")
	p.end("d")
	p.shutdown() // when it has left, the events have been taken
	for name, want := range map[string][]string{
		"a": {"create", "start", "exit 137", "delete 137"},
		"b": {"create", "start", "exit 137", "delete 137"},
		"c": {"create", "start", "exit 3", "delete 3"},
		"d": {"create", "start", "exit 137", "delete 137"},
	} {
		if got := p.of(name); !slices.Equal(got, want) {
			t.Errorf("events of %s: %q, want %q", name, got, want)
		}
	}
}

// TestPodAtOnce has many containers of one shim live at once, from its start on.
func TestPodAtOnce(t *testing.T) {
	p := newPod(t)
	const many = 6
	for n := range many {
		p.furnish(fmt.Sprint(n), "sh", "-c", fmt.Sprintf("exit %d", n))
	}
	p.join("0")
	var all sync.WaitGroup
	for n := range many {
		all.Go(func() {
			name := fmt.Sprint(n)
			ctx, id := t.Context(), p.id(name)
			if n > 0 {
				if address, err := p.start(name); err != nil || address != p.address {
					t.Errorf("%q, %v", address, err)
				}
			}
			_, err := p.task.Create(ctx, &task.CreateTaskRequest{Id: id, Bundle: p.bundle(name), Rootfs: rootfsMounts()})
			if err == nil {
				_, err = p.task.Start(ctx, &task.StartRequest{Id: id})
			}
			var exit *task.WaitResponse
			if err == nil {
				exit, err = p.task.Wait(ctx, &task.WaitRequest{Id: id})
			}
			if err == nil {
				_, err = p.task.Delete(ctx, &task.DeleteRequest{Id: id})
			}
			if err != nil || exit.ExitStatus != uint32(n) {
				t.Errorf("%d: %v, %v", n, exit, err)
			}
		})
	}
	all.Wait()
	p.shutdown()
	for n := range many {
		name := fmt.Sprint(n)
		want := []string{"create", "start", "exit " + name, "delete " + name}
		if got := p.of(name); !slices.Equal(got, want) {
			t.Errorf("events of %s: %q, want %q", name, got, want)
		}
	}
}

// TestPodKilled kills the shim of a pod: delete knows how each container ended,
// and leaves nothing of it.
func TestPodKilled(t *testing.T) {
	p := newPod(t)
	p.run("runs", "sleep", "1000")
	p.run("ended", "sh", "-c", "exit 7")
	p.wait("ended", 7)
	p.run("removed", "true")
	p.wait("removed", 0)
	p.remove("removed", 0)
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.gone()
	for name, want := range map[string]uint32{"runs": 137, "ended": 7} {
		for range 2 { // it can be repeated
			if got, err := p.lastWord(name); err != nil || got != want {
				t.Errorf("%s: %d, %v, want %d", name, got, err, want)
			}
		}
	}
}

// TestPodDelete wants delete to clean up after one container while the shim has
// others, but not after one that it has.
func TestPodDelete(t *testing.T) {
	p := newPod(t)
	p.run("lives", "sleep", "1000")
	p.furnish("failed", "/no/such/program")
	p.join("failed")
	_, err := p.task.Create(t.Context(), &task.CreateTaskRequest{Id: p.id("failed"), Bundle: p.bundle("failed"), Rootfs: rootfsMounts()})
	code(t, "create", err, codes.Unknown)
	if got, err := p.lastWord("failed"); err != nil || got != 255 {
		t.Errorf("delete beside another container: %d, %v", got, err)
	}
	ended := make(chan error, 1)
	go func() { _, err := p.lastWord("lives"); ended <- err }()
	select {
	case err := <-ended:
		t.Errorf("delete of a container that the shim has: %v", err)
	case <-time.After(200 * time.Millisecond): // it waits for the shim to be done with it
	}
	if got := p.exec("lives", "true"); got != 0 {
		t.Error("the container does not live")
	}
	p.end("lives")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	p.shutdown()
}

// TestPodSandbox leads a sandbox with two containers through its life.
func TestPodSandbox(t *testing.T) {
	p := newPod(t)
	if err := os.MkdirAll(p.bundle("box"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.furnish("box")
	p.join("box")
	ctx, id := t.Context(), p.prefix
	box := sandboxttrpc.NewSandboxClient(p.conn)
	if _, err := box.CreateSandbox(ctx, &sandbox.CreateSandboxRequest{SandboxId: id, BundlePath: p.bundle("box")}); err != nil {
		t.Fatal(err)
	}
	answer, err := box.StartSandbox(ctx, &sandbox.StartSandboxRequest{SandboxId: id})
	if err != nil || int(answer.Pid) != p.pid {
		t.Fatal(answer, err)
	}
	p.run("a", "sleep", "1000")
	p.run("b", "sh", "-c", `trap "exit 4" TERM; : >/dev/ready; while :; do sleep 0.01; done`)
	for end := time.Now().Add(patience); p.exec("b", "stat", "/dev/ready") != 0; {
		if time.Now().After(end) {
			t.Fatal("the container does not get ready")
		}
	}
	p.end("a")
	if _, err := p.task.Shutdown(ctx, &task.ShutdownRequest{Id: p.id("a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := box.StopSandbox(ctx, &sandbox.StopSandboxRequest{SandboxId: id, TimeoutSecs: 20}); err != nil {
		t.Fatal(err)
	}
	p.wait("b", 4)
	p.remove("b", 4)
	if _, err := box.WaitSandbox(ctx, &sandbox.WaitSandboxRequest{SandboxId: id}); err != nil {
		t.Error(err)
	}
	_, err = box.PingSandbox(ctx, &sandbox.PingRequest{SandboxId: id})
	code(t, "ping", err, codes.FailedPrecondition)
	// The shim may be gone before the client has looked at the answer.
	if _, err := box.ShutdownSandbox(ctx, &sandbox.ShutdownSandboxRequest{SandboxId: id}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Fatal(err)
	}
	p.gone()
	if got, err := p.lastWord("box"); err != nil || got != 0 {
		t.Errorf("delete of the sandbox: %d, %v", got, err)
	}
}
