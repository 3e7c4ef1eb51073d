package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
)

// lifeCalls makes the calls of vectors/task-life on the task t1.
type lifeCalls struct{ *daemon }

func (l lifeCalls) exec(id, program string) func() error {
	spec := fmt.Sprintf(`{"args":[%q,"1000"],"cwd":"/","env":["PATH=/bin"],"user":{}}`, program)
	return func() error {
		return l.Exec(l.m.t.Context(), testNS, &tasks.ExecProcessRequest{
			ContainerId: "t1", ExecId: id,
			Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: []byte(spec)},
		})
	}
}

func (l lifeCalls) start(exec string) func() error {
	return func() error {
		return second(l.Start(l.m.t.Context(), testNS, &tasks.StartRequest{ContainerId: "t1", ExecId: exec}))
	}
}

func (l lifeCalls) execStart(id, program string) func() error {
	return func() error { return errors.Join(l.exec(id, program)(), l.start(id)()) }
}

func (l lifeCalls) create(change func(*tasks.CreateTaskRequest, *containers.Container)) func() error {
	return func() error {
		r, c := &tasks.CreateTaskRequest{ContainerId: "t1", Rootfs: l.m.rootfs("t1")}, l.m.realContainer("t1", "sleep", "1000")
		if change != nil {
			change(r, c)
		}
		return second(l.Create(l.m.t.Context(), testNS, c, r))
	}
}

func (l lifeCalls) get(exec, want string) func() error {
	return func() error {
		r, err := l.Get(l.m.t.Context(), testNS, &tasks.GetRequest{ContainerId: "t1", ExecId: exec})
		if got := r.GetProcess().GetStatus().String(); err == nil && got != want {
			l.m.t.Errorf("status %s, want %s", got, want)
		}
		return err
	}
}

func (l lifeCalls) delete137() error {
	status, err := l.delete("t1")
	if status != 137 {
		l.m.t.Errorf("status %d", status)
	}
	return err
}

// steps are the calls by what the vectors call them.
func (l lifeCalls) steps() map[string]func() error {
	ctx := l.m.t.Context()
	pause := func() error { return l.Pause(ctx, testNS, &tasks.PauseTaskRequest{ContainerId: "t1"}) }
	kill := func() error { return l.kill("t1", 9) }
	del := func() error { return second(l.delete("t1")) }
	wait := func() error { return second(l.wait("t1", "")) }
	wrongOptions := func(r *tasks.CreateTaskRequest, _ *containers.Container) {
		r.Options = &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{10, 1, 'x'}}
	}
	return map[string]func() error{
		"start, no task": l.start(""),
		"create with options of runtimeoptions.v1.Options": l.create(wrongOptions),
		"create with runtime path rel/path": l.create(func(r *tasks.CreateTaskRequest, _ *containers.Container) {
			r.RuntimePath = "rel/path"
		}),
		"create with a runtime that is not installed": l.create(func(_ *tasks.CreateTaskRequest, c *containers.Container) {
			c.Runtime.Name = "io.containerd.nosuch.v9"
		}),
		"create":           l.create(nil),
		"create again":     l.create(nil),
		"pause created":    pause,
		"get unknown exec": l.get("nope", ""),
		"start":            l.start(""),
		"start again":      l.start(""),
		"delete running":   del,
		"resume running":   func() error { return l.Resume(ctx, testNS, &tasks.ResumeTaskRequest{ContainerId: "t1"}) },
		"resize without terminal": func() error {
			return l.ResizePty(ctx, testNS, &tasks.ResizePtyRequest{ContainerId: "t1", Width: 80, Height: 24})
		},
		"exec without id": l.exec("", "sleep"),
		"exec bad id":     l.exec("a b", "sleep"),
		"exec":            l.exec("e1", "sleep"),
		"exec same id":    l.exec("e1", "sleep"),
		"kill exec not started": func() error {
			return l.Kill(ctx, testNS, &tasks.KillRequest{ContainerId: "t1", ExecId: "e1", Signal: 9})
		},
		"start exec":                     l.start("e1"),
		"start exec of a missing binary": l.execStart("e2", "/no/such"),
		"delete that exec": func() error {
			return second(l.DeleteProcess(ctx, testNS, &tasks.DeleteProcessRequest{ContainerId: "t1", ExecId: "e2"}))
		},
		"start short exec":                      l.execStart("e3", "true"),
		"list pids":                             func() error { return second(l.ListPids(ctx, testNS, &tasks.ListPidsRequest{ContainerId: "t1"})) },
		"metrics":                               func() error { return second(l.Metrics(ctx, testNS, &tasks.MetricsRequest{})) },
		"pause":                                 pause,
		"exec while paused":                     l.exec("e4", "true"),
		"get exec while paused (status PAUSED)": l.get("e1", "PAUSED"),
		"kill":                                  kill,
		"wait":                                  wait,
		"wait after exit":                       wait,
		"kill stopped":                          kill,
		"pause stopped":                         pause,
		"exec stopped":                          l.exec("e5", "true"),
		"start stopped":                         l.start(""),
		"delete (exit status 137)":              l.delete137,
		"wait after delete":                     wait,
		"delete again":                          del,
		"delete while created":                  del,
		"delete":                                del,
		"kill, after a record of that id was created again": kill,
	}
}

// TestTaskLife follows vectors/task-life.json. Where it tells of containerd's
// choice that a container dies with its shim, ours is another: the container
// runs on, and what that test sees happens once it is killed.
func TestTaskLife(t *testing.T) {
	data, err := os.ReadFile("testdata/task-life.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Steps []struct {
			Call, Code string
			Events     []string
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	m := newRealMachine(t)
	d := m.start()
	steps := lifeCalls{d}.steps()
	unlisted := []string{"/tasks/create t1", "/tasks/start t1"} // a run that the vectors show by its events only
	for i, step := range vectors.Steps {
		switch {
		case strings.Join(step.Events, ",") == strings.Join(unlisted, ","):
			d.runReal("t1", "sleep", "1000")
			m.expect(step.Events...)
		case step.Events != nil:
			m.expect(step.Events...)
		case step.Call == "the shim is killed":
			m.killShim(d.find(testNS, "t1").dir)
			d.verdict("t1", "shim-lost")
			if err := d.kill("t1", 9); err != nil {
				t.Fatal(err)
			}
		case step.Call == "get after shim death":
			if got := d.state("t1"); got != "STOPPED 137" {
				t.Errorf("after the shim's death: %s", got)
			}
		case step.Call == "container delete with a running task":
			d.runStarted("t1") // rows of containers are not this package's
		case strings.HasPrefix(step.Call, "container delete"), strings.HasPrefix(step.Call, "kill, after the container record was deleted"):
		default:
			call := steps[step.Call]
			if call == nil {
				t.Fatalf("step %d: no call %q", i, step.Call)
			}
			err := call()
			if got := status.Code(errgrpc.ToGRPC(err)).String(); got != step.Code {
				t.Errorf("step %d: %s: %s (%v), want %s", i, step.Call, got, err, step.Code)
			}
			if step.Call == "kill, after a record of that id was created again" {
				if _, err := d.wait("t1", ""); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
