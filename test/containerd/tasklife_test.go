package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/test/harness"
)

// life makes the calls of the wire's vectors task-life on the task t1 of a daemon.
type life struct {
	d          *daemon
	ctx        context.Context
	tasks      tasksgrpc.TasksClient
	containers containersgrpc.ContainersClient
	rootfs     []*types.Mount
	record     *containers.Container

	mu     sync.Mutex
	events []string
}

func newLife(d *daemon) *life {
	d.t.Helper()
	conn, err := grpc.NewClient("unix://"+d.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", "berth"), 4*patience)
	l := &life{d: d, ctx: ctx, tasks: tasksgrpc.NewTasksClient(conn), containers: containersgrpc.NewContainersClient(conn)}
	d.ctr("containers", "create", "--runtime", runtimeName, harness.ImageName, "t1", "sleep", "1000")
	mounts, err := snapshotsgrpc.NewSnapshotsClient(conn).Mounts(ctx, &snapshots.MountsRequest{Snapshotter: "overlayfs", Key: "t1"})
	if err != nil {
		d.t.Fatal(err)
	}
	l.rootfs = mounts.Mounts
	got, err := l.containers.Get(ctx, &containers.GetContainerRequest{Id: "t1"})
	if err != nil {
		d.t.Fatal(err)
	}
	l.record = got.Container
	stream, err := eventsgrpc.NewEventsClient(conn).Subscribe(ctx, &events.SubscribeRequest{Filters: []string{`topic~=|^/tasks/|`}})
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	d.t.Cleanup(func() { cancel(); <-done; _ = conn.Close() })
	go func() {
		defer close(done)
		for {
			e, err := stream.Recv()
			if err != nil {
				return // the test is over, or says what it misses
			}
			l.note(e)
		}
	}()
	return l
}

// note notes an event as its topic, id and status.
func (l *life) note(e *types.Envelope) {
	text := e.Topic
	m, err := protobuf.UnmarshalAny(e.Event)
	switch m := m.(type) {
	case *apievents.TaskExit:
		text += fmt.Sprintf(" %s %d", m.Id, m.ExitStatus)
	case *apievents.TaskDelete:
		text += fmt.Sprintf(" %s %d", m.ContainerId, m.ExitStatus)
	case *apievents.TaskExecAdded:
		text += " " + m.ExecId
	case *apievents.TaskExecStarted:
		text += " " + m.ExecId
	case interface{ GetContainerId() string }:
		text += " " + m.GetContainerId()
	default:
		text += fmt.Sprintf(" %v %v", e, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, text)
}

// expect waits for events.
func (l *life) expect(want ...string) {
	l.d.t.Helper()
	l.d.eventually(fmt.Sprintf("events %q", want), func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.events) < len(want) {
			return fmt.Errorf("there are %q", l.events)
		}
		if !slices.Equal(l.events[:len(want)], want) {
			l.d.t.Errorf("events %q, want %q", l.events, want)
		}
		l.events = l.events[len(want):]
		return nil
	})
}

func (l *life) create(change func(*tasks.CreateTaskRequest)) func() error {
	return func() error {
		r := &tasks.CreateTaskRequest{ContainerId: "t1", Rootfs: l.rootfs}
		if change != nil {
			change(r)
		}
		_, err := l.tasks.Create(l.ctx, r)
		return err
	}
}

// createBy creates a task whose container has another runtime.
func (l *life) createBy(name string) func() error {
	return func() error {
		other := &containers.Container{Id: "t2", Spec: l.record.Spec, Runtime: &containers.Container_Runtime{Name: name}}
		if _, err := l.containers.Create(l.ctx, &containers.CreateContainerRequest{Container: other}); err != nil {
			return err
		}
		defer func() {
			if _, err := l.containers.Delete(l.ctx, &containers.DeleteContainerRequest{Id: "t2"}); err != nil {
				l.d.t.Error(err)
			}
		}()
		return l.create(func(r *tasks.CreateTaskRequest) { r.ContainerId = "t2" })()
	}
}

func (l *life) start(exec string) func() error {
	return func() error {
		_, err := l.tasks.Start(l.ctx, &tasks.StartRequest{ContainerId: "t1", ExecId: exec})
		return err
	}
}

func (l *life) exec(id, program string) func() error {
	spec := fmt.Sprintf(`{"args":[%q,"1000"],"cwd":"/","env":["PATH=/bin"],"user":{}}`, program)
	return func() error {
		_, err := l.tasks.Exec(l.ctx, &tasks.ExecProcessRequest{
			ContainerId: "t1", ExecId: id,
			Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: []byte(spec)},
		})
		return err
	}
}

// both makes one call after the other.
func both(first, second func() error) func() error {
	return func() error {
		if err := first(); err != nil {
			return err
		}
		return second()
	}
}

func (l *life) get(exec, want string) func() error {
	return func() error {
		r, err := l.tasks.Get(l.ctx, &tasks.GetRequest{ContainerId: "t1", ExecId: exec})
		if got := r.GetProcess().GetStatus().String(); err == nil && got != want {
			l.d.t.Errorf("status %s, want %s", got, want)
		}
		return err
	}
}

func (l *life) kill(exec string) func() error {
	return func() error {
		_, err := l.tasks.Kill(l.ctx, &tasks.KillRequest{ContainerId: "t1", ExecId: exec, Signal: 9})
		return err
	}
}

func (l *life) wait() error {
	_, err := l.tasks.Wait(l.ctx, &tasks.WaitRequest{ContainerId: "t1"})
	return err
}

func (l *life) delete() error {
	_, err := l.tasks.Delete(l.ctx, &tasks.DeleteTaskRequest{ContainerId: "t1"})
	return err
}

func (l *life) delete137() error {
	r, err := l.tasks.Delete(l.ctx, &tasks.DeleteTaskRequest{ContainerId: "t1"})
	if r.GetExitStatus() != 137 {
		l.d.t.Errorf("status %d", r.GetExitStatus())
	}
	return err
}

func (l *life) deleteContainer(id string) func() error {
	return func() error {
		_, err := l.containers.Delete(l.ctx, &containers.DeleteContainerRequest{Id: id})
		return err
	}
}

// killAgain makes the record of a task that runs anew, and kills the task.
func (l *life) killAgain() error {
	if _, err := l.containers.Create(l.ctx, &containers.CreateContainerRequest{Container: l.record}); err != nil {
		return err
	}
	return both(l.kill(""), l.wait)()
}

// killShim kills the shim of the one task.
func (l *life) killShim() error {
	shims := l.d.shims()
	if len(shims) != 1 {
		l.d.t.Fatalf("shims %v", shims)
	}
	return syscall.Kill(shims[0], syscall.SIGKILL)
}

// steps are the calls by what the vectors call them.
func (l *life) steps() map[string]func() error {
	ctx := l.ctx
	pause := func() error { _, err := l.tasks.Pause(ctx, &tasks.PauseTaskRequest{ContainerId: "t1"}); return err }
	return map[string]func() error{
		"start, no task": l.start(""),
		"create with options of runtimeoptions.v1.Options": l.create(func(r *tasks.CreateTaskRequest) {
			r.Options = &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{10, 1, 'x'}}
		}),
		"create with runtime path rel/path":           l.create(func(r *tasks.CreateTaskRequest) { r.RuntimePath = "rel/path" }),
		"create with a runtime that is not installed": l.createBy("io.containerd.nosuch.v9"),
		"create":           l.create(nil),
		"create again":     l.create(nil),
		"pause created":    pause,
		"get unknown exec": l.get("nope", ""),
		"start":            l.start(""),
		"start again":      l.start(""),
		"delete running":   l.delete,
		"resume running": func() error {
			_, err := l.tasks.Resume(ctx, &tasks.ResumeTaskRequest{ContainerId: "t1"})
			return err
		},
		"resize without terminal": func() error {
			_, err := l.tasks.ResizePty(ctx, &tasks.ResizePtyRequest{ContainerId: "t1", Width: 80, Height: 24})
			return err
		},
		"exec without id":                l.exec("", "sleep"),
		"exec bad id":                    l.exec("a b", "sleep"),
		"exec":                           l.exec("e1", "sleep"),
		"exec same id":                   l.exec("e1", "sleep"),
		"kill exec not started":          l.kill("e1"),
		"start exec":                     l.start("e1"),
		"start exec of a missing binary": both(l.exec("e2", "/no/such"), l.start("e2")),
		"delete that exec": func() error {
			_, err := l.tasks.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerId: "t1", ExecId: "e2"})
			return err
		},
		"start short exec":                      both(l.exec("e3", "true"), l.start("e3")),
		"list pids":                             func() error { _, err := l.tasks.ListPids(ctx, &tasks.ListPidsRequest{ContainerId: "t1"}); return err },
		"metrics":                               func() error { _, err := l.tasks.Metrics(ctx, &tasks.MetricsRequest{}); return err },
		"pause":                                 pause,
		"exec while paused":                     l.exec("e4", "true"),
		"get exec while paused (status PAUSED)": l.get("e1", "PAUSED"),
		"kill":                                  l.kill(""),
		"wait":                                  l.wait,
		"wait after exit":                       l.wait,
		"kill stopped":                          l.kill(""),
		"pause stopped":                         pause,
		"exec stopped":                          l.exec("e5", "true"),
		"start stopped":                         l.start(""),
		"delete (exit status 137)":              l.delete137,
		"wait after delete":                     l.wait,
		"delete again":                          l.delete,
		"delete while created":                  l.delete,
		"delete":                                l.delete,
		"container delete unknown":              l.deleteContainer("nope"),
		"the shim is killed":                    l.killShim,
		"get after shim death":                  l.get("", ""),
		"container delete with a running task":  both(l.start(""), l.deleteContainer("t1")),
		"kill, after the container record was deleted":      l.kill(""),
		"kill, after a record of that id was created again": l.killAgain,
	}
}

// TestTaskLife follows the wire's vectors of a task's life, which were made with
// the runc shim: under containerd this shim has to answer the same.
func TestTaskLife(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(programs.Module, "runtime", "testdata", "task-life.json"))
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
	l := newLife(newDaemon(t))
	steps := l.steps()
	unlisted := []string{"/tasks/create t1", "/tasks/start t1"} // a run that the vectors show by its events only
	for i, step := range vectors.Steps {
		if step.Events != nil {
			if slices.Equal(step.Events, unlisted) {
				if err := both(l.create(nil), l.start(""))(); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			l.expect(step.Events...)
			continue
		}
		call := steps[step.Call]
		if call == nil {
			t.Fatalf("step %d: no call %q", i, step.Call)
		}
		want := step.Code
		if want == "" {
			want = "OK"
		}
		if err := call(); status.Code(err).String() != want {
			t.Errorf("step %d: %s: %v, want %s", i, step.Call, err, want)
		}
	}
	l.d.ctr("containers", "rm", "t1")
}
