package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	tasktypes "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// TestDaemonAway lets a container end while nobody takes events: the exit is on
// record at once, and the events come later, complete and in order.
func TestDaemonAway(t *testing.T) {
	f := container(t, "sh", "-c", "exit 7")
	f.create(&task.CreateTaskRequest{})
	f.d.take("/tasks/create " + f.id)
	f.d.stop()
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	f.dial()
	f.startTask("")
	f.wait("", 7)
	var exit record.Exit
	if err := record.Read(f.bundle, record.ExitFile, &exit); err != nil || exit.Status != 7 {
		t.Fatalf("record %+v, %v", exit, err)
	}
	f.d.start()
	if _, err := f.task.Connect(f.ctx(), &task.ConnectRequest{Id: f.id}); err != nil { // as the daemon does first
		t.Fatal(err)
	}
	f.d.take("/tasks/start "+f.id, exitEvent(f.id, 7))
	f.delete("")
	f.d.take(deleteEvent(f.id, 7))
	f.shutdown()
}

// TestConnect works with and without a task.
func TestConnect(t *testing.T) {
	f := container(t, "sleep", "1000")
	check := func(pid int) {
		t.Helper()
		answer, err := f.task.Connect(f.ctx(), &task.ConnectRequest{Id: f.id})
		if err != nil || int(answer.ShimPid) != f.cmd.Process.Pid || int(answer.TaskPid) != pid || answer.Version == "" {
			t.Fatalf("%v, %v; want shim %d and task %d", answer, err, f.cmd.Process.Pid, pid)
		}
	}
	check(0)
	pid := f.create(&task.CreateTaskRequest{})
	check(pid)
	// Shutdown does nothing while there is a container, SIGTERM never does.
	if _, err := f.task.Shutdown(f.ctx(), &task.ShutdownRequest{Id: f.id}); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		if err := f.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	f.startTask("")
	check(pid)
	f.kill("", unix.SIGTERM) // init has no handler and ignores it
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
	if log, err := os.ReadFile(filepath.Join(f.bundle, "shim.log")); err != nil || !strings.Contains(string(log), "signal ignored") {
		t.Errorf("log: %s, %v", log, err)
	}
}

// TestSignalsReachContainers wants the shim's own care for signals not to reach
// into containers: there they have their default.
func TestSignalsReachContainers(t *testing.T) {
	f := container(t, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	for i, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE} {
		id := fmt.Sprintf("e%d", i)
		f.exec(id, &task.ExecProcessRequest{}, "sleep", "1000")
		f.startTask(id)
		f.kill(id, sig)
		f.wait(id, 128+uint32(sig))
		f.delete(id)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}

// TestPause freezes and thaws.
func TestPause(t *testing.T) {
	f := container(t, "sh", "-c", "while :; do echo x; sleep 0.01; done")
	c := newClientIO(t)
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path})
	c.stdout.expect("x\n")
	pause := func() {
		t.Helper()
		if _, err := f.task.Pause(f.ctx(), &task.PauseRequest{Id: f.id}); err != nil {
			t.Fatal(err)
		}
	}
	resume := func() {
		t.Helper()
		if _, err := f.task.Resume(f.ctx(), &task.ResumeRequest{Id: f.id}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		pause()
		if s := f.status(""); s != tasktypes.Status_PAUSED {
			t.Fatalf("status %s", s)
		}
		resume()
		if s := f.status(""); s != tasktypes.Status_RUNNING {
			t.Fatalf("status %s", s)
		}
		seen := len(c.stdout.text())
		c.stdout.until("goes on", func(text string) bool { return len(text) > seen })
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}

// TestUpdate sets a limit and reads it in the metrics.
func TestUpdate(t *testing.T) {
	f := container(t, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	update := func(resources string) error {
		_, err := f.task.Update(f.ctx(), &task.UpdateTaskRequest{Id: f.id, Resources: jsonAny("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", resources)})
		return err
	}
	code(t, "update", update(`{"memory":{"limit":33554432}}`), codes.OK)
	code(t, "update with garbage", update(`{`), codes.InvalidArgument)
	if ociRuntime() == "runc" { // crun takes it for nothing
		code(t, "update with nonsense", update(`{"memory":"much"}`), codes.Unknown)
	}
	answer, err := f.task.Stats(f.ctx(), &task.StatsRequest{Id: f.id})
	if err != nil {
		t.Fatal(err)
	}
	if limit := memoryLimit(t, answer.Stats); limit != 33554432 {
		t.Errorf("limit is %d", limit)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	_, err = f.task.Stats(f.ctx(), &task.StatsRequest{Id: f.id})
	if err == nil {
		t.Error("stats of a stopped task")
	}
	f.delete("")
	f.shutdown()
}

// TestCreateFails undoes everything, says why, and can be tried again.
func TestCreateFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		spec    func(id string) any
		request *task.CreateTaskRequest
		want    string
	}{
		{"spec that is no JSON", func(string) any { return "{" }, &task.CreateTaskRequest{}, ociRuntime() + " create"},
		{"empty spec", func(string) any { return "{}" }, &task.CreateTaskRequest{}, ociRuntime() + " create"},
		{"missing binary", func(id string) any { return spec(id, "/no/such/binary") }, &task.CreateTaskRequest{}, "o such file or directory"},
		{"bad mount", func(id string) any { return spec(id, "true") }, &task.CreateTaskRequest{Rootfs: []*types.Mount{{Type: "nofs", Source: "x"}}}, "mount rootfs"},
		{"missing runtime", func(id string) any { return spec(id, "true") }, &task.CreateTaskRequest{Options: mustAny(t, &runc.Options{BinaryName: "norunc"})}, `"norunc" is not in PATH`},
		{"second mount fails", func(id string) any { return spec(id, "true") },
			&task.CreateTaskRequest{Rootfs: append(rootfsMounts(), &types.Mount{Type: "bind", Source: "/no/such", Options: []string{"bind"}})}, "/no/such"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.spec)
			io := newClientIO(t)
			c.request.Stdout = io.stdout.path
			_, err := f.tryCreate(c.request)
			code(t, "create", err, codes.Unknown)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), f.id) {
				t.Fatalf("error %v, want %q and the task's id", err, c.want)
			}
			f.checkClean()
			if children := f.children(); len(children) != 0 {
				t.Errorf("processes are left: %v", children)
			}
			if entries, _ := filepath.Glob(filepath.Join(f.bundle, "*.pid")); len(entries) != 0 {
				t.Errorf("files are left: %v", entries)
			}
			_, err = f.task.State(f.ctx(), &task.StateRequest{Id: f.id})
			code(t, "state", err, codes.NotFound)

			data, err := json.Marshal(spec(f.id, "sh", "-c", "exit 3"))
			if err == nil {
				err = os.WriteFile(filepath.Join(f.bundle, "config.json"), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			f.run(&task.CreateTaskRequest{})
			f.wait("", 3)
			f.delete("")
			f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, exitEvent(f.id, 3), deleteEvent(f.id, 3))
			f.shutdown()
		})
	}
}

// TestHangingRuntime has a runtime that never answers: the call ends by its
// deadline and leaves nothing.
func TestHangingRuntime(t *testing.T) {
	f := container(t, "true")
	hang := filepath.Join(shortDir(t), "hangrun")
	script := "#!/bin/sh\ncase \"$*\" in *delete*) exit 0;; esac\nexec sleep 1000\n"
	if err := os.WriteFile(hang, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	r := &task.CreateTaskRequest{Id: f.id, Bundle: f.bundle, Rootfs: rootfsMounts(), Options: mustAny(t, &runc.Options{BinaryName: hang})}
	_, err := f.task.Create(ctx, r)
	if !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("create: %v", err)
	}
	// The shim's own answer comes after the client's patience.
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := f.task.State(f.ctx(), &task.StateRequest{Id: f.id})
		if status.Code(err) == codes.NotFound {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the task is still there: %v", err)
		}
	}
	f.checkClean()
	if children := f.children(); len(children) != 0 {
		t.Errorf("processes are left: %v", children)
	}
	f.shutdown()
}

// TestHangingHook kills the shim while a hook hangs, which the runtime's death does
// not end: delete does.
func TestHangingHook(t *testing.T) {
	told := filepath.Join(shortDir(t), "told")
	f := newFixture(t, func(id string) any {
		s := spec(id, "true")
		s["hooks"] = map[string]any{"createRuntime": []any{map[string]any{
			"path": "/bin/sh", "args": []string{"sh", "-c", ": >" + told + "; sleep 1000"},
		}}}
		return s
	})
	created := make(chan error, 1)
	go func() {
		_, err := f.tryCreate(&task.CreateTaskRequest{})
		created <- err
	}()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(told); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the hook is not run")
		}
	}
	f.killShim()
	if err := <-created; err == nil {
		t.Error("created without a shim")
	}
	if _, err := f.remove(); err != nil {
		t.Error(err)
	}
	left, err := sys.Session(f.cmd.Process.Pid)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, pid := range left {
		_ = unix.Kill(pid, unix.SIGKILL) // it is in nobody else's session
	}
}

// remove runs berth-shim delete and returns what it prints.
func (f *fixture) remove() (*task.DeleteResponse, error) {
	f.t.Helper()
	cmd := exec.Command(binary, "delete", "-namespace", namespace, "-id", f.id, "-bundle", f.bundle)
	cmd.Dir = f.bundle
	cmd.Env = append(os.Environ(), "BERTH_OCI_ROOT="+f.ociRoot)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	answer := &task.DeleteResponse{}
	return answer, proto.Unmarshal(out, answer)
}

// killShim ends the shim without warning. Its execs become our children, and as
// long as nobody reaps them the kernel does not let init of their pid namespace
// end; so we do.
func (f *fixture) killShim() {
	f.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(f.bundle, record.ExecsDir, "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.cmd.Process.Kill(); err != nil {
		f.t.Fatal(err)
	}
	<-f.exited
	var reaping sync.WaitGroup
	f.t.Cleanup(reaping.Wait)
	for _, dir := range dirs {
		var started record.Started
		if err := record.Read(dir, record.StartedFile, &started); err != nil {
			f.t.Fatal(err)
		}
		p, err := sys.OpenProcess(started.PID)
		if err != nil {
			f.t.Fatal(err)
		}
		reaping.Go(func() {
			defer p.Close()
			if _, err := p.Wait(context.Background()); err != nil {
				f.t.Error(err)
			}
		})
	}
}

// TestDeleteAfterShim kills the shim of a task in each state, and has delete
// clean up: with the true status where there is one, twice, side by side.
func TestDeleteAfterShim(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(f *fixture)
		want   uint32
	}{
		{"running", func(f *fixture) { f.run(&task.CreateTaskRequest{}) }, 137},
		{"with execs", func(f *fixture) {
			f.run(&task.CreateTaskRequest{})
			f.exec("e1", &task.ExecProcessRequest{}, "sleep", "1000")
			f.startTask("e1")
		}, 137},
		{"created", func(f *fixture) { f.create(&task.CreateTaskRequest{}) }, 137},
		{"paused", func(f *fixture) {
			f.run(&task.CreateTaskRequest{})
			if _, err := f.task.Pause(f.ctx(), &task.PauseRequest{Id: f.id}); err != nil {
				f.t.Fatal(err)
			}
		}, 137},
		{"stopped", func(f *fixture) {
			f.run(&task.CreateTaskRequest{})
			f.kill("", unix.SIGKILL)
			f.wait("", 137)
		}, 137},
		{"runtime forgot it", func(f *fixture) {
			f.run(&task.CreateTaskRequest{})
			if err := os.RemoveAll(f.ociRoot); err != nil {
				f.t.Fatal(err)
			}
		}, 137},
		{"nothing created", func(f *fixture) {
			// A shim that answers has claimed its bundle; the daemon's record of
			// it, which says so before that, is not there in this test.
			if _, err := f.task.Connect(f.ctx(), &task.ConnectRequest{Id: f.id}); err != nil {
				f.t.Fatal(err)
			}
		}, 255},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := container(t, "sleep", "1000")
			c.before(f)
			if _, err := f.remove(); err == nil || !strings.Contains(err.Error(), "live shim") {
				t.Fatalf("delete beside a live shim: %v", err)
			}
			var started record.Started
			running := record.Read(f.bundle, record.StartedFile, &started) == nil
			f.killShim()
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					answer, err := f.remove()
					if err != nil || answer.ExitStatus != c.want || answer.ExitedAt == nil {
						t.Errorf("delete: %v, %v; want %d", answer, err, c.want)
					}
				})
			}
			all.Wait()
			if running && sys.Alive(started.PID, started.StartTime) {
				t.Errorf("init %d lives on", started.PID)
			}
			f.removeCgroups(c.name == "runtime forgot it")
			f.checkClean()
		})
	}
}

// removeCgroups removes the cgroups of a container that its runtime forgot.
func (f *fixture) removeCgroups(forgotten bool) {
	if !forgotten {
		return
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test/" + f.id)
	unified, _ := filepath.Glob("/sys/fs/cgroup/berth-shim-test/" + f.id)
	for _, dir := range append(groups, unified...) {
		if err := os.Remove(dir); err != nil {
			f.t.Error(err)
		}
	}
}

// TestStatusOfZombie has init end after its shim was killed, unreaped: its
// status is still there to read.
func TestStatusOfZombie(t *testing.T) {
	f := container(t, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
	c := newClientIO(t)
	pid := f.run(&task.CreateTaskRequest{Stdout: c.stdout.path})
	c.stdout.expect("ready\n")
	p, err := sys.OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f.killShim() // we are the next subreaper, and don't reap
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if answer, err := f.remove(); err != nil || answer.ExitStatus != 9 || int(answer.Pid) != pid {
		t.Errorf("%v, %v; want 9", answer, err)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if answer, err := f.remove(); err != nil || answer.ExitStatus != 9 {
		t.Errorf("again: %v, %v; want 9", answer, err)
	}
}

// TestCommandLine tries what people get wrong.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args string
		ok   bool
		want string
	}{
		{"-v", true, "berth-shim "},
		{"--version", true, "revision"},
		{"", false, "no command"},
		{"frobnicate", false, `unknown command "frobnicate"`},
		{"start -id x -address /a", false, "start: -namespace is required"},
		{"start -id x -namespace n", false, "start: -address is required"},
		{"serve -namespace n -id i", false, "-bundle is required"},
		{"delete -id i -bundle /x", false, "-namespace is required"},
		{"-namespace n -id i -bundle /no/such/bundle serve", false, "/no/such/bundle"},
		{"-namespace n -id i -bundle /no/such/bundle -address a -publish-binary p delete", true, ""},
	} {
		cmd := exec.Command(binary, strings.Fields(c.args)...)
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.ok || !strings.Contains(string(out), c.want) {
			t.Errorf("berth-shim %s: %v, %q; want %q", c.args, err, out, c.want)
		}
	}
}
