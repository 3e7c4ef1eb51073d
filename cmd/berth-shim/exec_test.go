package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types/runc"
	tasktypes "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/protobuf"
)

// status returns the status of a process.
func (f *fixture) status(exec string) tasktypes.Status {
	f.t.Helper()
	answer, err := f.task.State(f.ctx(), &task.StateRequest{Id: f.id, ExecId: exec})
	if err != nil {
		f.t.Fatalf("state %q: %v", exec, err)
	}
	return answer.Status
}

// TestTaskLife plays the calls of the wire's vector task-life that reach a
// shim, with the codes and events it has.
func TestTaskLife(t *testing.T) {
	f := container(t, "sleep", "1000")
	id := f.id
	ctx := f.ctx
	start := func(exec string) error {
		_, err := f.task.Start(ctx(), &task.StartRequest{Id: id, ExecId: exec})
		return err
	}
	kill := func(exec string) error {
		_, err := f.task.Kill(ctx(), &task.KillRequest{Id: id, ExecId: exec, Signal: uint32(unix.SIGKILL)})
		return err
	}
	remove := func(exec string) error {
		_, err := f.task.Delete(ctx(), &task.DeleteRequest{Id: id, ExecId: exec})
		return err
	}
	pause := func() error { _, err := f.task.Pause(ctx(), &task.PauseRequest{Id: id}); return err }
	resume := func() error { _, err := f.task.Resume(ctx(), &task.ResumeRequest{Id: id}); return err }
	get := func(exec string) error {
		_, err := f.task.State(ctx(), &task.StateRequest{Id: id, ExecId: exec})
		return err
	}
	wait := func() error { _, err := f.task.Wait(ctx(), &task.WaitRequest{Id: id}); return err }
	exec := func(exec string, argv ...string) error { return f.tryExec(exec, &task.ExecProcessRequest{}, argv...) }

	code(t, "start, no task", start(""), codes.NotFound)
	_, err := f.tryCreate(&task.CreateTaskRequest{Options: mustAny(t, &task.StartRequest{})})
	code(t, "create with foreign options", err, codes.Unknown)
	_, err = f.tryCreate(&task.CreateTaskRequest{Options: mustAny(t, &runc.Options{})})
	code(t, "create", err, codes.OK)
	_, err = f.tryCreate(&task.CreateTaskRequest{})
	code(t, "create again", err, codes.AlreadyExists)
	code(t, "pause created", pause(), codes.Unknown)
	code(t, "get unknown exec", get("e1"), codes.NotFound)
	code(t, "start", start(""), codes.OK)
	code(t, "start again", start(""), codes.Unknown)
	code(t, "delete running", remove(""), codes.Unknown)
	code(t, "resume running", resume(), codes.Unknown)
	_, err = f.task.ResizePty(ctx(), &task.ResizePtyRequest{Id: id, Width: 1, Height: 1})
	code(t, "resize without terminal", err, codes.OK)
	code(t, "exec without id", exec(""), codes.InvalidArgument)
	code(t, "exec bad id", exec("a b"), codes.InvalidArgument)
	code(t, "exec", exec("e1", "sleep", "1000"), codes.OK)
	code(t, "exec same id", exec("e1", "sleep", "1000"), codes.AlreadyExists)
	code(t, "kill exec not started", kill("e1"), codes.FailedPrecondition)
	code(t, "start exec", start("e1"), codes.OK)
	code(t, "exec", exec("e2", "/no/such/binary"), codes.OK)
	code(t, "start exec of a missing binary", start("e2"), codes.Unknown)
	f.d.take("/tasks/create "+id, "/tasks/start "+id, "/tasks/exec-added e1", "/tasks/exec-started e1", "/tasks/exec-added e2")
	code(t, "delete that exec", remove("e2"), codes.OK)
	code(t, "exec", exec("e3", "true"), codes.OK)
	code(t, "start short exec", start("e3"), codes.OK)
	f.d.take("/tasks/exec-added e3", "/tasks/exec-started e3", exitEvent("e3", 0))
	pids, err := f.task.Pids(ctx(), &task.PidsRequest{Id: id})
	code(t, "list pids", err, codes.OK)
	checkPids(t, pids, "e1")
	_, err = f.task.Stats(ctx(), &task.StatsRequest{Id: id})
	code(t, "metrics", err, codes.OK)
	code(t, "pause", pause(), codes.OK)
	code(t, "exec while paused", exec("e4", "true"), codes.Unknown)
	if s := f.status("e1"); s != tasktypes.Status_PAUSED {
		t.Errorf("exec of a paused task is %s", s)
	}
	code(t, "kill", kill(""), codes.OK)
	code(t, "wait", wait(), codes.OK)
	f.d.take("/tasks/paused "+id, "/tasks/resumed "+id, exitEvent("e1", 137), exitEvent(id, 137))
	code(t, "wait after exit", wait(), codes.OK)
	code(t, "kill stopped", kill(""), codes.NotFound)
	code(t, "pause stopped", pause(), codes.Unknown)
	code(t, "exec stopped", exec("e5", "true"), codes.Unknown)
	code(t, "start stopped", start(""), codes.Unknown)
	if got := f.delete("").ExitStatus; got != 137 {
		t.Errorf("delete answers %d", got)
	}
	f.d.take(deleteEvent(id, 137))
	code(t, "wait after delete", wait(), codes.NotFound)
	code(t, "delete again", remove(""), codes.NotFound)
	f.create(&task.CreateTaskRequest{})
	code(t, "delete while created", remove(""), codes.OK)
	f.d.take("/tasks/create "+id, deleteEvent(id, 0))
	f.shutdown()
}

func jsonAny(url, value string) *anypb.Any {
	return &anypb.Any{TypeUrl: url, Value: []byte(value)}
}

// memoryLimit reads the limit of memory in metrics of either version.
func memoryLimit(t *testing.T, metrics *anypb.Any) uint64 {
	t.Helper()
	switch metrics.TypeUrl {
	case cgroup.TypeV1:
		var m cgroup1.Metrics
		if err := proto.Unmarshal(metrics.Value, &m); err != nil {
			t.Fatal(err)
		}
		return m.GetMemory().GetUsage().GetLimit()
	case cgroup.TypeV2:
		var m cgroup2.Metrics
		if err := proto.Unmarshal(metrics.Value, &m); err != nil {
			t.Fatal(err)
		}
		return m.GetMemory().GetUsageLimit()
	}
	t.Fatalf("metrics are a %q", metrics.TypeUrl)
	return 0
}

func mustAny(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	packed, err := protobuf.MarshalAny(m)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// checkPids wants init without details and one process per exec with them.
func checkPids(t *testing.T, answer *task.PidsResponse, execs ...string) {
	t.Helper()
	var got []string
	bare := 0
	for _, p := range answer.GetProcesses() {
		if p.Info == nil {
			bare++
			continue
		}
		m, err := protobuf.UnmarshalAny(p.Info)
		details, ok := m.(*runc.ProcessDetails)
		if err != nil || !ok {
			t.Fatalf("info %v: %v", p.Info, err)
		}
		got = append(got, details.ExecId)
	}
	if bare != 1 || fmt.Sprint(got) != fmt.Sprint(execs) {
		t.Fatalf("pids: %v; want init and %v", answer.GetProcesses(), execs)
	}
}

// TestExecAfterExit wants the kind that the wire has for it.
func TestExecAfterExit(t *testing.T) {
	f := container(t, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	f.exec("late", &task.ExecProcessRequest{}, "true")
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	_, err := f.task.Start(f.ctx(), &task.StartRequest{Id: f.id, ExecId: "late"})
	code(t, "start exec after exit", err, codes.FailedPrecondition)
	f.delete("")
	f.shutdown()
}

// TestManyExecs runs execs side by side and one after the other, and wants each
// one's status, and nothing left of them in the shim.
func TestManyExecs(t *testing.T) {
	f := container(t, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	round := func(n int) {
		var all sync.WaitGroup
		for lane := range 4 {
			all.Go(func() {
				for i := range n {
					id, status := fmt.Sprintf("e%d-%d", lane, i), uint32(i%200)
					f.exec(id, &task.ExecProcessRequest{}, "sh", "-c", fmt.Sprintf("exit %d", status))
					f.startTask(id)
					f.wait(id, status)
					f.delete(id)
				}
			})
		}
		all.Wait()
	}
	round(2)
	before := f.descriptors()
	round(10)
	if after := f.descriptors(); after > before {
		t.Errorf("descriptors of the shim: %d, then %d", before, after)
	}
	if children := f.children(); len(children) != 1 {
		t.Errorf("children of the shim: %v, want init alone", children)
	}
	if left, _ := os.ReadDir(filepath.Join(f.bundle, "execs")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}

// descriptors counts the open files of the shim, without connections.
func (f *fixture) descriptors() int {
	f.t.Helper()
	n := 0
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", f.cmd.Process.Pid))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && !isSocket(to) {
			n++
		}
	}
	return n
}

func isSocket(link string) bool { return len(link) > 7 && link[:7] == "socket:" }

// children lists the children of the shim.
func (f *fixture) children() []int {
	f.t.Helper()
	children, err := sys.Children(f.cmd.Process.Pid)
	if err != nil {
		f.t.Fatal(err)
	}
	return children
}

// TestHostPidNamespace has a container whose processes do not end with init.
func TestHostPidNamespace(t *testing.T) {
	f := newFixture(t, func(id string) any {
		sp := spec(id, "sh", "-c", "sleep 999 & sleep 998 & wait")
		linux := sp["linux"].(map[string]any)
		linux["namespaces"] = []any{map[string]any{"type": "mount"}, map[string]any{"type": "uts"}, map[string]any{"type": "ipc"}}
		return sp
	})
	f.run(&task.CreateTaskRequest{})
	f.exec("e1", &task.ExecProcessRequest{}, "sleep", "997")
	f.startTask("e1")
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, "/tasks/exec-added e1", "/tasks/exec-started e1", exitEvent("e1", 137), exitEvent(f.id, 137))
	f.delete("")
	if children := f.children(); len(children) != 0 {
		t.Errorf("children of the shim are left: %v", children)
	}
	f.shutdown()
}
