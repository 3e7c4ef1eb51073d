package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/runtime/bootstrap/v1"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// foreignScript is what a test writes in place of an OCI spec for the fake shim of
// another project: this test binary again, which is started by a small script with
// the command line of the shim protocol. It writes no records into the bundle.
type foreignScript struct {
	Args []string // of init
	Mode string   // as of script

	Answer   string // form of what start prints: "json", "proto" or "address"
	Version  int    // that it says it speaks
	Serves   int    // that it does; 0 is the same
	Hang     string // the step that it hangs at: a command ("start"), a method ("Start"), or one of them and "+" for its end
	Die      string // the step that it dies at
	Pids     string // "": as they are; "none": none; "guest": numbers of another machine
	Garbage  bool   // delete prints garbage
	Publish  bool   // events by the daemon's binary
	Unserved string // a method that it does not know in version 3
	Sandbox  bool   // it serves the sandbox API
	Protocol string // that it says it speaks; "" is ttrpc
}

// foreignFake is the fake shim's server.
type foreignFake struct {
	*fakeShim
	script foreignScript
}

// foreignMain runs if the test binary was started as another project's shim: its
// arguments are a directory for what it needs to know, and those of the protocol.
func foreignMain(shadow string, args []string) {
	value := func(name string) string {
		if i := slices.Index(args, name); i >= 0 {
			return args[i+1]
		}
		return ""
	}
	if len(args) == 1 && args[0] == "-info" {
		foreignInfo(shadow)
	}
	f := foreignFake{fakeShim: &fakeShim{ns: value("-namespace"), id: value("-id"), dir: filepath.Join(shadow, value("-id"))}}
	command := args[len(args)-1]
	data, err := os.ReadFile(record.ConfigFile) // in the working directory
	if err == nil {
		err = json.Unmarshal(data, &f.script)
	}
	if err == nil {
		f.fakeShim.script = script{Args: f.script.Args, Mode: f.script.Mode}
		f.publishBy = value("-publish-binary")
		if !f.script.Publish {
			f.publishBy = ""
		}
		f.at(command)
		switch command {
		case "start":
			err = f.start(args)
		case "serve":
			err = f.serve()
		case "delete":
			if f.script.Garbage {
				fmt.Println("no DeleteResponse")
				break
			}
			fakeDelete(f.dir, timestamppb.Now())
		}
		f.at(command + "+")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "foreign shim:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// foreignInfo tells what the fake is; it notes that it was asked.
func foreignInfo(shadow string) {
	input, err := io.ReadAll(os.Stdin)
	var options anypb.Any
	if err == nil {
		err = proto.Unmarshal(input, &options)
	}
	if err == nil {
		err = os.MkdirAll(shadow, 0o700)
	}
	if err == nil {
		var asked *os.File
		asked, err = os.OpenFile(filepath.Join(shadow, "asked"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(asked, "%q\n", options.GetTypeUrl())
		}
	}
	out, merr := proto.Marshal(&types.RuntimeInfo{
		Name: "fake", Version: &types.RuntimeVersion{Version: "1.2"}, Annotations: map[string]string{allowMounts: "mkfs/*,special"},
	})
	if err == nil && merr == nil {
		_, err = os.Stdout.Write(out)
	}
	if err != nil || merr != nil {
		fmt.Fprintln(os.Stderr, err, merr)
		os.Exit(3)
	}
	os.Exit(0)
}

// at misbehaves if this is the step to.
func (f foreignFake) at(step string) {
	if step == f.script.Die {
		os.Exit(5)
	}
	if step == f.script.Hang {
		hang()
	}
}

// start starts the server and says where it is.
func (f foreignFake) start(args []string) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	address := filepath.Join(f.dir, "sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	socket, err := l.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(logFIFO, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"foreign-shim", filepath.Dir(f.dir)}, append(args[:len(args)-1:len(args)-1], "serve")...)...)
	cmd.Stderr, cmd.ExtraFiles = log, []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	version := max(f.script.Version, taskV2)
	var answer []byte
	switch f.script.Answer {
	case "address":
		answer = []byte("unix://" + address)
	case "proto":
		answer, err = proto.Marshal(&bootstrap.BootstrapResult{Version: int32(version), Address: "unix://" + address, Protocol: f.protocol()})
	default:
		answer, err = json.Marshal(contact{Version: version, Address: "unix://" + address, Protocol: f.protocol()})
	}
	if err == nil {
		_, err = os.Stdout.Write(answer)
	}
	return err
}

func (f foreignFake) protocol() string {
	if f.script.Protocol != "" {
		return f.script.Protocol
	}
	return protocolTTRPC
}

func (f foreignFake) serve() error {
	if err := sys.SetSubreaper(); err != nil {
		return err
	}
	unix.CloseOnExec(3)
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
			step := path.Base(info.FullMethod)
			f.at(step)
			reply, err := method(ctx, unmarshal)
			f.at(step + "+")
			return reply, err
		}))
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "serving")
	methods := map[string]ttrpc.Method{
		"Connect": served(f.Connect), "Create": served(f.Create), "Start": served(f.Start), "Delete": served(f.Delete),
		"State": served(f.State), "Exec": served(f.Exec), "Kill": served(f.Kill), "Wait": served(f.Wait),
		"Pids": served(f.fakeShim.Pids), "Stats": served(f.Stats), "Pause": served(f.Pause), "Shutdown": served(f.Shutdown),
	}
	if f.script.Sandbox {
		box := newForeignBox(f)
		methods = box.tasks()
		server.RegisterService(sandboxService, &ttrpc.ServiceDesc{Methods: box.boxes()})
	}
	serves := f.script.Serves
	if serves == 0 {
		serves = max(f.script.Version, taskV2)
	}
	if serves == taskV2 || f.script.Unserved != "" {
		server.RegisterService(serviceV2, &ttrpc.ServiceDesc{Methods: methods})
	}
	if serves == taskV3 {
		third := map[string]ttrpc.Method{}
		for name, m := range methods {
			if name != f.script.Unserved {
				third[name] = m
			}
		}
		server.RegisterService("containerd.task.v3.Task", &ttrpc.ServiceDesc{Methods: third})
	}
	return server.Serve(context.Background(), l)
}

// served makes a method of a ttrpc service.
func served[Q, A any](handle func(context.Context, *Q) (*A, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		q := new(Q)
		if err := unmarshal(q); err != nil {
			return nil, err
		}
		return handle(ctx, q)
	}
}

// told is a pid as the shim tells it.
func (f foreignFake) told(pid uint32) uint32 {
	switch f.script.Pids {
	case "none":
		return 0
	case "guest":
		return uint32(os.Getppid()) // somebody else's, and alive
	}
	return pid
}

func (f foreignFake) Connect(_ context.Context, r *shimtask.ConnectRequest) (*shimtask.ConnectResponse, error) {
	reply := &shimtask.ConnectResponse{ShimPid: f.told(uint32(os.Getpid())), Version: "fake"}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.procs[""]; p != nil && r.GetId() == f.id {
		reply.TaskPid = f.told(uint32(p.cmd.Process.Pid))
	}
	return reply, nil
}

func (f foreignFake) Create(ctx context.Context, r *shimtask.CreateTaskRequest) (*shimtask.CreateTaskResponse, error) {
	reply, err := f.fakeShim.Create(ctx, r)
	if err == nil {
		reply.Pid = f.told(reply.Pid)
	}
	return reply, err
}

func (f foreignFake) Start(ctx context.Context, r *shimtask.StartRequest) (*shimtask.StartResponse, error) {
	reply, err := f.fakeShim.Start(ctx, r)
	if err == nil {
		reply.Pid = f.told(reply.Pid)
	}
	return reply, err
}

func (f foreignFake) State(ctx context.Context, r *shimtask.StateRequest) (*shimtask.StateResponse, error) {
	reply, err := f.fakeShim.State(ctx, r)
	if err == nil {
		reply.Pid = f.told(reply.Pid)
	}
	return reply, err
}

func (f foreignFake) Delete(ctx context.Context, r *shimtask.DeleteRequest) (*shimtask.DeleteResponse, error) {
	reply, err := f.fakeShim.Delete(ctx, r)
	if err == nil {
		reply.Pid = f.told(reply.Pid)
	}
	return reply, err
}

func (f foreignFake) Shutdown(ctx context.Context, r *shimtask.ShutdownRequest) (*emptypb.Empty, error) {
	return f.fakeShim.Shutdown(ctx, r)
}

// publishWith runs the daemon's binary with an event, as shims without ttrpc do.
func publishWith(binary string, e *types.Envelope) error {
	value, err := proto.Marshal(&anypb.Any{TypeUrl: e.GetEvent().GetTypeUrl(), Value: e.GetEvent().GetValue()})
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "--address", os.Getenv("GRPC_ADDRESS"), "publish", "--topic", e.GetTopic(), "--namespace", e.GetNamespace())
	cmd.Stdin = bytes.NewReader(value)
	return cmd.Run()
}

// fakeForeign makes the fake shim of another project, and gives its path.
func (m *machine) fakeForeign() string {
	m.t.Helper()
	path := filepath.Join(m.dir, "containerd-shim-fake-v1")
	text := fmt.Sprintf("#!/bin/sh\nexec %s foreign-shim %s \"$@\"\n", m.shim, filepath.Join(m.dir, "foreign"))
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// foreignContainer is a container for the fake shim of another project.
func foreignContainer(id, shim string, s foreignScript) *containers.Container {
	c := containerOf(id, script{})
	c.Runtime.Name = shim
	c.Spec.Value, _ = json.Marshal(s)
	return c
}

// createFake makes a task with the fake shim of another project.
func (d *daemon) createFake(id, shim string, s foreignScript) error {
	_, err := d.Create(d.m.t.Context(), testNS, foreignContainer(id, shim, s), &tasks.CreateTaskRequest{ContainerId: id})
	return err
}

// fakePID reads the pid of the fake's container from what the fake has noted.
func (m *machine) fakePID(t *testing.T, id string) int {
	t.Helper()
	var s record.Started
	if err := record.Read(filepath.Join(m.dir, "foreign", id), record.StartedFile, &s); err != nil {
		t.Fatal(err)
	}
	return s.PID
}
