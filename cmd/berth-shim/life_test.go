package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/runtime/record"
)

// TestExitCodes runs containers to their end, each way.
func TestExitCodes(t *testing.T) {
	for script, want := range map[string]uint32{
		"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$; exit 3": 3, "exec sh -c 'exit 42'": 42,
	} {
		t.Run(script, func(t *testing.T) {
			f := container(t, "sh", "-c", script)
			f.run(&task.CreateTaskRequest{})
			f.wait("", want)
			var exit record.Exit
			if err := record.Read(f.bundle, record.ExitFile, &exit); err != nil || exit.Status != want || exit.Reason != "" {
				t.Fatalf("record %+v, %v", exit, err)
			}
			if got := f.delete("").ExitStatus; got != want {
				t.Fatalf("delete answers %d", got)
			}
			f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, exitEvent(f.id, want), deleteEvent(f.id, want))
			f.shutdown()
		})
	}
}

// TestKill ends a container by signals.
func TestKill(t *testing.T) {
	f := container(t, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
	io := newClientIO(t)
	f.run(&task.CreateTaskRequest{Stdout: io.stdout.path})
	io.stdout.expect("ready\n")
	_, err := f.task.Delete(f.ctx(), &task.DeleteRequest{Id: f.id})
	code(t, "delete running", err, codes.Unknown)
	f.kill("", unix.SIGTERM)
	f.wait("", 9)
	_, err = f.task.Kill(f.ctx(), &task.KillRequest{Id: f.id, Signal: 9})
	code(t, "kill stopped", err, codes.NotFound)
	f.delete("")
	_, err = f.task.Kill(f.ctx(), &task.KillRequest{Id: f.id, Signal: 9})
	code(t, "kill deleted", err, codes.NotFound)
	f.shutdown()
}

// TestCrun runs the same shim with the other runtime.
func TestCrun(t *testing.T) {
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip(err)
	}
	crun := mustAny(t, &runc.Options{BinaryName: "crun"})
	f := container(t, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
	c := newClientIO(t)
	if _, err := f.tryCreate(&task.CreateTaskRequest{Stdout: c.stdout.path, Options: crun}); err != nil {
		if strings.Contains(err.Error(), "crun create: exit status 1: cgroups in hybrid mode not supported") {
			t.Skip("crun refuses the cgroups of this machine")
		}
		t.Fatal(err)
	}
	f.startTask("")
	c.stdout.expect("ready\n")
	e := newClientIO(t)
	f.exec("e1", &task.ExecProcessRequest{Terminal: true, Stdout: e.stdout.path}, "sh", "-c", "tty; exit 6")
	f.startTask("e1")
	f.wait("e1", 6)
	f.delete("e1")
	if out := e.stdout.end(); !strings.Contains(out, "/dev/pts/") {
		t.Errorf("exec printed %q", out)
	}
	f.exec("e2", &task.ExecProcessRequest{}, "/no/such/binary")
	_, err := f.task.Start(f.ctx(), &task.StartRequest{Id: f.id, ExecId: "e2"})
	code(t, "start exec of a missing binary", err, codes.Unknown)
	if err == nil || !strings.Contains(err.Error(), "crun exec: ") {
		t.Errorf("error %v", err)
	}
	_, err1 := f.task.Pause(f.ctx(), &task.PauseRequest{Id: f.id})
	_, err2 := f.task.Resume(f.ctx(), &task.ResumeRequest{Id: f.id})
	_, err3 := f.task.Update(f.ctx(), &task.UpdateTaskRequest{Id: f.id, Resources: jsonAny("", `{"memory":{"limit":33554432}}`)})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Error(err)
	}
	f.kill("", unix.SIGTERM)
	f.wait("", 9)
	f.delete("")

	f.create(&task.CreateTaskRequest{Options: crun})
	f.delete("")
	_, err = f.tryCreate(&task.CreateTaskRequest{Options: crun, Rootfs: []*types.Mount{{Type: "tmpfs", Source: "tmpfs"}}})
	if err == nil || !strings.Contains(err.Error(), "crun create: ") {
		t.Errorf("create without a binary: %v", err)
	}
	f.checkClean()
	f.shutdown()
}

// TestOwner gives the container's ends of the pipes to the user of the options.
func TestOwner(t *testing.T) {
	f := container(t, "sh", "-c", "exec stat -L -c %u:%g /proc/self/fd/1")
	c := newClientIO(t)
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path, Options: mustAny(t, &runc.Options{IoUid: 1234, IoGid: 4321})})
	f.wait("", 0)
	f.delete("")
	want := ":4321\n"
	if ociRuntime() == "crun" { // which gives them to the container's own user and group
		want = "0:0\n"
	}
	if out := c.stdout.end(); !strings.HasSuffix(out, want) {
		t.Errorf("stdout belongs to %q, want ...%q", out, want)
	}
	f.shutdown()
}

// TestDeleteCreated deletes a task that was never started: what Delete answers, its
// event and the record, which is all there is for a daemon that has missed both, say
// the same.
func TestDeleteCreated(t *testing.T) {
	f := container(t, "sleep", "1000")
	pid := f.create(&task.CreateTaskRequest{})
	answer, err := f.task.Delete(f.ctx(), &task.DeleteRequest{Id: f.id})
	if err != nil {
		t.Fatal(err)
	}
	var exit record.Exit
	if err := record.Read(f.bundle, record.ExitFile, &exit); err != nil {
		t.Fatal(err)
	}
	if exit.PID != pid || exit.Status != answer.GetExitStatus() || exit.Status != 0 || !exit.ExitedAt.Equal(answer.GetExitedAt().AsTime()) || exit.Reason == "" {
		t.Errorf("on record %+v, Delete says %v", exit, answer)
	}
	f.d.take("/tasks/create "+f.id, deleteEvent(f.id, 0))
	f.shutdown()
}
