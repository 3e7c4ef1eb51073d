package main

import (
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	task "github.com/berthd/berth/api/runtime/task/v3"
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
