package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	"github.com/berthd/berth/api/types"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// The fake shim is this test binary again, with the command line of berth-shim.
// It is a real process with a real process as its container, so that it can be
// killed, stopped and outlived; it does without an OCI runtime, and its
// config.json says how it misbehaves.

// script is what a test writes in place of an OCI spec.
type script struct {
	Args []string // of init
	// Mode is one of: "" (well-behaved), "crash" (ends before it serves), "fail"
	// (refuses Create), "hang" (never answers Create), "die" (ends in Create,
	// having started init), "stay" (does not heed Shutdown), "mute" (forwards no
	// exit), "forget" (has no task after Delete but answers with an error).
	Mode string
}

// fakeMain runs if the test binary was started as a shim.
func fakeMain() {
	if len(os.Args) == 4 && os.Args[1] == "daemon" {
		crashDaemon(os.Args[2], os.Args[3])
		os.Exit(0)
	}
	if len(os.Args) > 3 && os.Args[1] == "foreign-shim" {
		foreignMain(os.Args[2], os.Args[3:])
	}
	if len(os.Args) < 2 || os.Args[1] != "serve" && os.Args[1] != "delete" {
		return
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	ns, id, dir := flags.String("namespace", "", ""), flags.String("id", "", ""), flags.String("bundle", "", "")
	_ = flags.Parse(os.Args[2:])
	if os.Args[1] == "delete" {
		fakeDelete(*dir, nil)
		os.Exit(0)
	}
	f := &fakeShim{ns: *ns, id: *id, dir: *dir}
	data, err := os.ReadFile(filepath.Join(*dir, record.ConfigFile))
	if err == nil {
		err = json.Unmarshal(data, &f.script)
	}
	if err == nil {
		err = f.serve()
	}
	fmt.Fprintln(os.Stderr, "fake shim:", err)
	os.Exit(3)
}

// fakeDelete kills what a fake shim has left.
func fakeDelete(dir string, exited *timestamppb.Timestamp) {
	var s record.Started
	if record.Read(dir, record.StartedFile, &s) == nil && sys.Alive(s.PID, s.StartTime) {
		_ = unix.Kill(s.PID, unix.SIGKILL)
	}
	if err := mount.UnmountAll(filepath.Join(dir, record.RootfsDir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out, _ := proto.Marshal(&shimtask.DeleteResponse{ExitStatus: 137, ExitedAt: exited})
	_, _ = os.Stdout.Write(out)
}

type fakeShim struct {
	taskttrpc.TaskService
	ns, id, dir string
	script      script
	publishBy   string // program for events; "" is ttrpc

	mu    sync.Mutex
	procs map[string]*fakeProcess // nil before Create and after Delete; "" is init
	from  string                  // directory that Start restores from
	there chan struct{}           // closed once init has been restored, or never will be
	queue []*types.Envelope
	busy  bool
}

type fakeProcess struct {
	exec    string
	cmd     *exec.Cmd
	gate    *os.File
	status  apitask.Status
	exit    record.Exit
	done    chan struct{}
	started bool
}

func (f *fakeShim) serve() error {
	if f.script.Mode == "crash" {
		return errors.New("crashing as told")
	}
	unix.CloseOnExec(3)
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	taskttrpc.RegisterTaskService(server, f)
	return server.Serve(context.Background(), l)
}

// launch starts a process that waits for its gate to open.
func (f *fakeShim) launch(execID string, args []string) (*fakeProcess, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if len(args) == 0 {
		args = []string{"sleep", "1000"}
	}
	p := &fakeProcess{exec: execID, gate: w, status: apitask.Status_CREATED, done: make(chan struct{})}
	p.cmd = exec.Command("sh", append([]string{"-c", `read x && exec "$@" <&-`, "sh"}, args...)...)
	p.cmd.Stdin = r
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	dir := f.dir
	if execID != "" {
		dir = execDir(f.dir, execID)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	start, err := sys.StartTime(p.cmd.Process.Pid)
	if err == nil {
		err = record.Write("fake", dir, record.StartedFile, record.Started{Version: record.Version, PID: p.cmd.Process.Pid, StartTime: start})
	}
	if err != nil {
		return nil, err
	}
	f.procs[execID] = p
	go f.reap(p, dir)
	return p, nil
}

func (f *fakeShim) reap(p *fakeProcess, dir string) {
	_ = p.cmd.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	p.gate.Close()
	p.status = apitask.Status_STOPPED
	p.exit = record.Exit{
		Version: record.Version, PID: p.cmd.Process.Pid, ExitedAt: time.Now(),
		Status: exitCode(unix.WaitStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus))),
	}
	_ = record.Write("fake", dir, record.ExitFile, p.exit)
	close(p.done)
	id := p.exec
	if id == "" {
		id = f.id
	}
	if p.started && f.script.Mode != "mute" {
		f.publish("/tasks/exit", &apievents.TaskExit{
			ContainerId: f.id, Id: id, Pid: uint32(p.exit.PID), ExitStatus: p.exit.Status, ExitedAt: timestamppb.New(p.exit.ExitedAt),
		})
	}
}

// publish queues an event. Needs mu.
func (f *fakeShim) publish(topic string, event proto.Message) {
	value, _ := proto.Marshal(event)
	f.queue = append(f.queue, &types.Envelope{
		Namespace: f.ns, Topic: topic, Timestamp: timestamppb.Now(),
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: value},
	})
	if !f.busy {
		f.busy = true
		go f.deliver()
	}
}

func (f *fakeShim) deliver() {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.busy = false
			f.mu.Unlock()
			return
		}
		e := f.queue[0]
		f.mu.Unlock()
		for f.forward(e) != nil {
			time.Sleep(20 * time.Millisecond)
		}
		f.mu.Lock()
		f.queue = f.queue[1:]
		f.mu.Unlock()
	}
}

func (f *fakeShim) forward(e *types.Envelope) error {
	if f.publishBy != "" {
		return publishWith(f.publishBy, e)
	}
	return forwardTo(os.Getenv("TTRPC_ADDRESS"), e)
}

func forwardTo(address string, e *types.Envelope) error {
	raw, err := net.Dial("unix", address)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(raw)
	defer client.Close()
	_, err = forwardttrpc.NewEventsClient(client).Forward(context.Background(), &forward.ForwardRequest{Envelope: e})
	return err
}

func (f *fakeShim) find(execID string) (*fakeProcess, error) {
	p := f.procs[execID]
	if p == nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("process %q: %w", execID, errdefs.ErrNotFound))
	}
	return p, nil
}

func (f *fakeShim) Create(_ context.Context, r *shimtask.CreateTaskRequest) (*shimtask.CreateTaskResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.script.Mode {
	case "fail":
		fmt.Fprintln(os.Stderr, "failing as told")
		return nil, errors.New("runtime: no such thing")
	case "hang":
		f.mu.Unlock()
		hang()
	}
	var mounts []mount.Mount
	for _, m := range r.Rootfs {
		mounts = append(mounts, mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if len(mounts) > 0 {
		if err := mount.All(mounts, filepath.Join(f.dir, record.RootfsDir)); err != nil {
			return nil, err
		}
	}
	f.procs = map[string]*fakeProcess{}
	if f.from = r.Checkpoint; f.from != "" {
		f.there = make(chan struct{})
		f.publish("/tasks/create", &apievents.TaskCreate{ContainerId: f.id})
		return &shimtask.CreateTaskResponse{}, record.Write("fake", f.dir, record.StartedFile, record.Started{Version: record.Version})
	}
	p, err := f.launch("", f.script.Args)
	if err != nil {
		return nil, err
	}
	if f.script.Mode == "die" {
		os.Exit(4)
	}
	f.publish("/tasks/create", &apievents.TaskCreate{ContainerId: f.id, Pid: uint32(p.cmd.Process.Pid)})
	return &shimtask.CreateTaskResponse{Pid: uint32(p.cmd.Process.Pid)}, nil
}

func (f *fakeShim) Start(_ context.Context, r *shimtask.StartRequest) (*shimtask.StartResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.restore(); err != nil {
		return nil, err
	}
	p, err := f.find(r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.status != apitask.Status_CREATED {
		return nil, errors.New("cannot start a process that is not created")
	}
	if _, err := p.gate.WriteString("\n"); err != nil {
		return nil, err
	}
	p.status, p.started = apitask.Status_RUNNING, true
	pid := uint32(p.cmd.Process.Pid)
	if r.ExecId == "" {
		f.publish("/tasks/start", &apievents.TaskStart{ContainerId: f.id, Pid: pid})
	} else {
		f.publish("/tasks/exec-started", &apievents.TaskExecStarted{ContainerId: f.id, ExecId: r.ExecId, Pid: pid})
	}
	return &shimtask.StartResponse{Pid: pid}, nil
}

// fakeImages are what a fake dump has, by name.
var fakeImages = map[string]string{"pages-1.img": "memory", "inventory.img": "what there is", "deep/descriptors.json": "[]"}

func (f *fakeShim) Checkpoint(_ context.Context, r *shimtask.CheckpointTaskRequest) (*emptypb.Empty, error) {
	for name, text := range fakeImages {
		path := filepath.Join(r.Path, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		if f.script.Mode == "full" {
			return nil, errors.New("no space left")
		}
	}
	return &emptypb.Empty{}, nil
}

// restore makes the process of a task from a checkpoint. Needs mu.
func (f *fakeShim) restore() error {
	if f.from == "" {
		return nil
	}
	for name, text := range fakeImages {
		got, err := os.ReadFile(filepath.Join(f.from, name))
		if err != nil || string(got) != text {
			return fmt.Errorf("image %s has %q: %v", name, got, err)
		}
	}
	if _, err := f.launch("", f.script.Args); err != nil {
		return err
	}
	f.from = ""
	close(f.there)
	return nil
}

func (f *fakeShim) Exec(_ context.Context, r *shimtask.ExecProcessRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var s script
	if err := json.Unmarshal(r.Spec.GetValue(), &s); err != nil {
		return nil, err
	}
	if _, err := f.launch(r.ExecId, s.Args); err != nil {
		return nil, err
	}
	f.publish("/tasks/exec-added", &apievents.TaskExecAdded{ContainerId: f.id, ExecId: r.ExecId})
	return &emptypb.Empty{}, nil
}

func (f *fakeShim) Delete(_ context.Context, r *shimtask.DeleteRequest) (*shimtask.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.from != "" {
		f.procs, f.from = nil, ""
		close(f.there)
		return &shimtask.DeleteResponse{ExitedAt: timestamppb.Now()}, nil
	}
	p, err := f.find(r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.status == apitask.Status_CREATED {
		_ = p.cmd.Process.Kill()
		f.mu.Unlock()
		<-p.done
		f.mu.Lock()
	}
	if p.status != apitask.Status_STOPPED {
		return nil, errors.New("cannot delete a running process")
	}
	delete(f.procs, r.ExecId)
	if r.ExecId == "" {
		if err := mount.UnmountAll(filepath.Join(f.dir, record.RootfsDir)); err != nil {
			return nil, err
		}
		f.procs = nil
		f.publish("/tasks/delete", &apievents.TaskDelete{ContainerId: f.id, Pid: uint32(p.exit.PID), ExitStatus: p.exit.Status})
		if f.script.Mode == "forget" {
			return nil, errors.New("deleted, but not telling")
		}
	}
	return &shimtask.DeleteResponse{Pid: uint32(p.exit.PID), ExitStatus: p.exit.Status, ExitedAt: timestamppb.New(p.exit.ExitedAt)}, nil
}

func (f *fakeShim) State(_ context.Context, r *shimtask.StateRequest) (*shimtask.StateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.from != "" {
		return &shimtask.StateResponse{Id: f.id, Status: apitask.Status_CREATED}, nil
	}
	p, err := f.find(r.ExecId)
	if err != nil {
		return nil, err
	}
	s := &shimtask.StateResponse{Id: f.id, ExecId: r.ExecId, Pid: uint32(p.cmd.Process.Pid), Status: p.status}
	if p.status == apitask.Status_STOPPED {
		s.ExitStatus, s.ExitedAt = p.exit.Status, timestamppb.New(p.exit.ExitedAt)
	}
	return s, nil
}

func (f *fakeShim) Kill(_ context.Context, r *shimtask.KillRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.find(r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.status == apitask.Status_STOPPED {
		return nil, errgrpc.ToGRPC(fmt.Errorf("process: %w", errdefs.ErrNotFound))
	}
	return &emptypb.Empty{}, unix.Kill(p.cmd.Process.Pid, unix.Signal(r.Signal))
}

func (f *fakeShim) Wait(_ context.Context, r *shimtask.WaitRequest) (*shimtask.WaitResponse, error) {
	f.mu.Lock()
	there := f.there
	f.mu.Unlock()
	if there != nil {
		<-there
	}
	f.mu.Lock()
	p, err := f.find(r.ExecId)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	<-p.done
	return &shimtask.WaitResponse{ExitStatus: p.exit.Status, ExitedAt: timestamppb.New(p.exit.ExitedAt)}, nil
}

func (f *fakeShim) Pause(context.Context, *shimtask.PauseRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.procs[""].status = apitask.Status_PAUSED
	return &emptypb.Empty{}, nil
}

func (f *fakeShim) Stats(context.Context, *shimtask.StatsRequest) (*shimtask.StatsResponse, error) {
	return &shimtask.StatsResponse{Stats: &anypb.Any{TypeUrl: "fake"}}, nil
}

func (f *fakeShim) Pids(context.Context, *shimtask.PidsRequest) (*shimtask.PidsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &shimtask.PidsResponse{}
	for _, p := range f.procs {
		r.Processes = append(r.Processes, &apitask.ProcessInfo{Pid: uint32(p.cmd.Process.Pid)})
	}
	return r, nil
}

func (f *fakeShim) Shutdown(context.Context, *shimtask.ShutdownRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.procs != nil || f.script.Mode == "stay" {
		return &emptypb.Empty{}, nil
	}
	for limit := time.Now().Add(2 * time.Second); len(f.queue) > 0 && time.Now().Before(limit); {
		f.mu.Unlock()
		time.Sleep(time.Millisecond)
		f.mu.Lock()
	}
	os.Exit(0)
	return nil, nil
}

// hang never returns. All goroutines of a program can't block for ever: the Go
// runtime ends it.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}
