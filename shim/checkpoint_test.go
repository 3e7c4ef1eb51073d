package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	tasktypes "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// dump checkpoints the task to a directory.
func (b *bench) dump(path string, o *runc.CheckpointOptions) error {
	b.t.Helper()
	r := &task.CheckpointTaskRequest{Id: "c", Path: path}
	if o != nil {
		value, err := proto.Marshal(o)
		if err != nil {
			b.t.Fatal(err)
		}
		r.Options = &anypb.Any{TypeUrl: "containerd.runc.v1.CheckpointOptions", Value: value}
	}
	_, err := b.Checkpoint(b.ctx(), r)
	return err
}

// createFrom creates the task "c" from a checkpoint.
func (b *bench) createFrom(images string, paths streamPaths) error {
	answer, err := b.Create(b.ctx(), &task.CreateTaskRequest{
		Id: "c", Bundle: b.bundle, Rootfs: []*types.Mount{{Type: "bind", Source: "/"}}, Checkpoint: images,
		Stdout: paths.stdout,
	})
	if err == nil && answer.Pid != 0 {
		b.t.Errorf("pid %d before the restore", answer.Pid)
	}
	return err
}

func (b *bench) status() tasktypes.Status {
	b.t.Helper()
	answer, err := b.State(b.ctx(), &task.StateRequest{Id: "c"})
	if err != nil {
		b.t.Fatal(err)
	}
	return answer.Status
}

// criuDirs lists what is left of the directories for criu's log.
func (b *bench) criuDirs() []string {
	b.t.Helper()
	left, err := filepath.Glob(filepath.Join(b.bundle, "criu-*"))
	if err != nil {
		b.t.Fatal(err)
	}
	return left
}

// TestCheckpoint passes every option on, and keeps for the restore what it needs.
func TestCheckpoint(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	images := filepath.Join(t.TempDir(), "deep", "images")
	if err := b.dump(images, nil); err == nil || !strings.Contains(err.Error(), "cannot checkpoint a created process") {
		t.Fatal(err)
	}
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(t.TempDir(), "work")
	needs := oci.CriuOptions{
		OpenTCP: true, ExternalSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"network"}, CgroupsMode: "full",
	}
	err := b.dump(images, &runc.CheckpointOptions{
		Exit: true, OpenTcp: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true,
		EmptyNamespaces: []string{"network"}, CgroupsMode: "full", WorkPath: work,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := (oci.CheckpointOptions{Images: images, Work: work, Exit: true, Criu: needs}); !reflect.DeepEqual(b.runtime.dumped, want) {
		t.Errorf("runtime got %+v, want %+v", b.runtime.dumped, want)
	}
	var kept record.Criu
	if err := record.Read(images, record.CriuFile, &kept); err != nil || !reflect.DeepEqual(criuOptions(kept), needs) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	// The path of the options counts where the request has none.
	other := filepath.Join(t.TempDir(), "other")
	if err := b.dump("", &runc.CheckpointOptions{ImagePath: other}); err != nil || b.runtime.dumped.Images != other || b.runtime.dumped.Exit {
		t.Errorf("%v, %+v", err, b.runtime.dumped)
	}
	if dirs := b.criuDirs(); len(dirs) != 0 || filepath.Dir(b.runtime.dumped.Work) != b.bundle {
		t.Errorf("left: %v; work in %s", dirs, b.runtime.dumped.Work)
	}
	for name, r := range map[string]*task.CheckpointTaskRequest{
		"relative path":  {Id: "c", Path: "relative"},
		"no path":        {Id: "c"},
		"other options":  {Id: "c", Path: images, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{1}}},
		"broken options": {Id: "c", Path: images, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.CheckpointOptions", Value: []byte{1}}},
	} {
		if _, err := b.Checkpoint(b.ctx(), r); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if n := b.runtime.count("checkpoint"); n != 2 {
		t.Errorf("%d dumps", n)
	}
	b.runtime.hook("checkpoint", fails)
	if err := b.dump(images, nil); !errors.Is(err, errRuntime) || b.status() != tasktypes.Status_RUNNING {
		t.Errorf("%v, %s", err, b.status())
	}
	if dirs := b.criuDirs(); len(dirs) != 0 || b.runtime.count("resume") != 0 {
		t.Errorf("left: %v; %d times resumed", dirs, b.runtime.count("resume"))
	}
}

// TestCheckpointCutOff thaws what a dump that took too long may have left frozen.
func TestCheckpointCutOff(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	b.mustCreate()
	if err := b.start(""); err != nil {
		t.Fatal(err)
	}
	b.config.Timeout = 50 * 1e6 // 50 ms
	b.runtime.hook("checkpoint", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	_, err := b.Checkpoint(context.Background(), &task.CheckpointTaskRequest{Id: "c", Path: t.TempDir()})
	if !errors.Is(err, context.DeadlineExceeded) || b.runtime.count("resume") != 1 {
		t.Errorf("%v; %d times resumed", err, b.runtime.count("resume"))
	}
}

// TestRestore takes a task from a checkpoint through its life.
func TestRestore(t *testing.T) {
	images, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	needs := record.Criu{Version: record.Version, OpenTCP: true, EmptyNamespaces: []string{"network"}}
	if err := record.Write("test", images, record.CriuFile, needs); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, "echo restored; exit 7")
	if err := b.createFrom(images, streamPaths{stdout: "file://" + out}); err != nil {
		t.Fatal(err)
	}
	var started record.Started
	if err := record.Read(b.bundle, record.StartedFile, &started); err != nil || started.PID != 0 {
		t.Errorf("recorded %+v, %v", started, err)
	}
	if b.status() != tasktypes.Status_CREATED || b.runtime.count("create") != 0 || b.mounted != 1 {
		t.Errorf("%s, %d creates, %d mounts", b.status(), b.runtime.count("create"), b.mounted)
	}
	for what, err := range map[string]error{
		"cannot exec a created-from-checkpoint process":       b.exec("e"),
		"cannot checkpoint a created-from-checkpoint process": b.dump(t.TempDir(), nil),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
	if err := b.kill(unix.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("kill: %v", err)
	}
	if pids, err := b.Pids(b.ctx(), &task.PidsRequest{Id: "c"}); err != nil || len(pids.Processes) != 0 {
		t.Errorf("pids %v, %v", pids, err)
	}

	// A restore that fails leaves all as it was, at each step.
	for _, call := range []string{"restore", "is restored"} {
		b.runtime.hook(call, fails)
		if err := b.start(""); !errors.Is(err, errRuntime) || b.status() != tasktypes.Status_CREATED {
			t.Fatalf("%s: %v, %s", call, err, b.status())
		}
		b.runtime.hook(call, nil)
		if err := record.Read(b.bundle, record.StartedFile, &started); err != nil || started.PID != 0 || len(b.criuDirs()) != 0 {
			t.Errorf("%s: recorded %+v, %v; left %v", call, started, err, b.criuDirs())
		}
	}
	// Limits from before hold, or it does not run.
	resources := &anypb.Any{Value: []byte(`{"pids":{"limit":9}}`)}
	if _, err := b.Update(b.ctx(), &task.UpdateTaskRequest{Id: "c", Resources: resources}); err != nil || b.runtime.count("update") != 0 {
		t.Fatal(err)
	}
	b.runtime.hook("update", fails)
	if err := b.start(""); !errors.Is(err, errRuntime) || b.status() != tasktypes.Status_CREATED {
		t.Fatalf("update: %v, %s", err, b.status())
	}
	b.runtime.hook("update", nil)

	answer, err := b.Start(b.ctx(), &task.StartRequest{Id: "c"})
	if err != nil || int(answer.Pid) != b.runtime.init {
		t.Fatalf("pid %d, %v; want %d", answer.GetPid(), err, b.runtime.init)
	}
	if got := b.runtime.restored; got.Images != images || !reflect.DeepEqual(got.Criu, criuOptions(needs)) || got.Bundle != b.bundle {
		t.Errorf("runtime got %+v", got)
	}
	if status, err := b.wait(""); err != nil || status != 7 {
		t.Errorf("status %d, %v", status, err)
	}
	if status, err := b.delete(""); err != nil || status != 7 {
		t.Errorf("status %d, %v", status, err)
	}
	if text, err := os.ReadFile(out); err != nil || !strings.HasSuffix(string(text), "restored\n") {
		t.Errorf("output %q, %v", text, err)
	}
	b.wantEvents("create", "start", "exit c", "delete")
}

// TestUnrestored deletes a task that was never restored, and refuses what can't be
// a checkpoint.
func TestUnrestored(t *testing.T) {
	b := newBench(t, "exit 0")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"relative", "/no/such/directory", file} {
		if err := b.createFrom(bad, streamPaths{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := b.createFrom(t.TempDir(), streamPaths{}); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() {
		_, err := b.wait("")
		waited <- err
	}()
	for range maxPending {
		if _, err := b.Update(b.ctx(), &task.UpdateTaskRequest{Id: "c", Resources: &anypb.Any{Value: []byte("{}")}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Update(b.ctx(), &task.UpdateTaskRequest{Id: "c", Resources: &anypb.Any{Value: []byte("{}")}}); err == nil {
		t.Error("updates without end")
	}
	if status, err := b.delete(""); err != nil || status != 0 {
		t.Fatalf("status %d, %v", status, err)
	}
	if err := <-waited; !errdefs.IsNotFound(err) {
		t.Errorf("wait: %v", err)
	}
	if got := b.published(); !slices.Equal(got, []string{"create", "delete"}) {
		t.Errorf("events %q", got)
	}
}
