package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/runtime/record"
)

// limited starts a shim for a container that runs argv in 64 MiB.
func limited(t *testing.T, argv ...string) *fixture {
	t.Helper()
	return newFixture(t, func(id string) any {
		s := spec(id, argv...)
		s["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 64 << 20, "swap": 64 << 20}}
		return s
	})
}

// hog takes more memory than limited allows.
const hog = "dd if=/dev/zero of=/dev/null bs=256M count=1"

// exitRecord reads how a process ended.
func (f *fixture) exitRecord(exec string) record.Exit {
	f.t.Helper()
	dir := f.bundle
	if exec != "" {
		dir = filepath.Join(dir, record.ExecsDir, exec)
	}
	var exit record.Exit
	if err := record.Read(dir, record.ExitFile, &exit); err != nil {
		f.t.Fatal(err)
	}
	return exit
}

// TestOOMOfInit wants the oom event ahead of the exit that it caused, each time.
func TestOOMOfInit(t *testing.T) {
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := limited(t, strings.Fields(hog)...)
			f.run(&task.CreateTaskRequest{})
			f.wait("", 137)
			if exit := f.exitRecord(""); exit.OOMKills != 1 || exit.Reason != "" {
				t.Errorf("record %+v", exit)
			}
			f.delete("")
			f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, "/tasks/oom "+f.id, exitEvent(f.id, 137), deleteEvent(f.id, 137))
			f.shutdown()
		})
	}
}

// TestOOMOfExec wants it ahead of the exit of an exec, and once.
func TestOOMOfExec(t *testing.T) {
	f := limited(t, "sleep", "600")
	f.run(&task.CreateTaskRequest{})
	f.exec("e1", &task.ExecProcessRequest{}, strings.Fields(hog)...)
	f.startTask("e1")
	f.wait("e1", 137)
	if exit := f.exitRecord("e1"); exit.OOMKills != 1 {
		t.Errorf("record of the exec %+v", exit)
	}
	f.exec("e2", &task.ExecProcessRequest{}, "true")
	f.startTask("e2")
	f.wait("e2", 0)
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id,
		"/tasks/exec-added e1", "/tasks/exec-started e1", "/tasks/oom "+f.id, exitEvent("e1", 137),
		"/tasks/exec-added e2", "/tasks/exec-started e2", exitEvent("e2", 0),
		exitEvent(f.id, 137), deleteEvent(f.id, 137))
	f.shutdown()
}

// watched lists what the shim has open of the memory controller.
func (f *fixture) watched() []string {
	f.t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", f.cmd.Process.Pid))
	if err != nil {
		f.t.Fatal(err)
	}
	var found []string
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "/memory.") {
			found = append(found, to)
		}
	}
	return found
}

// TestOOMOfOther has a process killed that is neither init nor an exec, whose
// exit tells nobody. Deleting the task gives every descriptor back.
func TestOOMOfOther(t *testing.T) {
	f := limited(t, "sh", "-c", hog+"; echo $?; exec sleep 600")
	c := newClientIO(t)
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path})
	c.stdout.expect("137\n")
	f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, "/tasks/oom "+f.id)
	if len(f.watched()) == 0 {
		t.Error("nothing is watched")
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	if exit := f.exitRecord(""); exit.OOMKills != 1 {
		t.Errorf("record %+v", exit)
	}
	f.delete("")
	f.d.take(exitEvent(f.id, 137), deleteEvent(f.id, 137))
	if watched := f.watched(); len(watched) > 0 {
		t.Errorf("left open: %v", watched)
	}
	f.shutdown()
}

// TestOOMOfTwo has one shim with two containers, of which each in turn runs out of
// memory. The one that is deleted takes nothing from the other.
func TestOOMOfTwo(t *testing.T) {
	f := limited(t, "sh", "-c", hog+"; exec sleep 600")
	f.run(&task.CreateTaskRequest{})
	f.d.take("/tasks/create "+f.id, "/tasks/start "+f.id, "/tasks/oom "+f.id)

	second := *f
	second.id, second.bundle = f.id+"b", filepath.Join(shortDir(t), "b")
	config, err := os.ReadFile(filepath.Join(f.bundle, record.ConfigFile))
	if err == nil {
		err = os.MkdirAll(filepath.Join(second.bundle, record.RootfsDir), 0o711)
	}
	if err == nil {
		config = []byte(strings.ReplaceAll(string(config), f.id, second.id))
		err = os.WriteFile(filepath.Join(second.bundle, record.ConfigFile), config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	second.run(&task.CreateTaskRequest{})
	f.d.take("/tasks/create "+second.id, "/tasks/start "+second.id, "/tasks/oom "+second.id)

	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.d.take(exitEvent(f.id, 137), deleteEvent(f.id, 137))
	second.exec("e1", &task.ExecProcessRequest{}, "sh", "-c", hog+"; sleep 0.01; exit 3")
	second.startTask("e1")
	second.wait("e1", 3)
	f.d.take("/tasks/exec-added e1", "/tasks/exec-started e1", "/tasks/oom "+second.id, exitEvent("e1", 3))
	second.kill("", unix.SIGKILL)
	second.wait("", 137)
	if exit := second.exitRecord(""); exit.OOMKills != 2 {
		t.Errorf("record %+v", exit)
	}
	second.delete("")
	second.checkClean()
	if watched := f.watched(); len(watched) > 0 {
		t.Errorf("left open: %v", watched)
	}
	f.shutdown()
}
