package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/cgroup"
)

// groupsOf reads /proc/PID/cgroup.
func groupsOf(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestShimCgroup has the shim, and not the container, go to the group of the
// options, in either version.
func TestShimCgroup(t *testing.T) {
	f := container(t, "sleep", "600")
	group := "/berth-shim-test/shim-" + f.id
	pid := f.run(&task.CreateTaskRequest{Options: mustAny(t, &runc.Options{ShimCgroup: group})})
	if got := groupsOf(t, f.cmd.Process.Pid); !strings.Contains(got, ":"+group+"\n") {
		t.Errorf("the shim is in\n%s", got)
	}
	if got := groupsOf(t, pid); strings.Contains(got, group) || !strings.Contains(got, "/berth-shim-test/"+f.id+"\n") {
		t.Errorf("the container is in\n%s", got)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
	if err := cgroup.Remove(group); err != nil {
		t.Error(err)
	}
}

// TestRootOption has the OCI runtime keep its state below another directory.
func TestRootOption(t *testing.T) {
	f := container(t, "sleep", "600")
	root := filepath.Join(shortDir(t), "elsewhere")
	f.run(&task.CreateTaskRequest{Options: mustAny(t, &runc.Options{Root: root, NoPivotRoot: true, NoNewKeyring: true})})
	if _, err := os.Stat(filepath.Join(root, namespace, f.id)); err != nil {
		t.Error(err)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	if entries, _ := os.ReadDir(filepath.Join(root, namespace)); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
	f.shutdown()
}

// TestSystemdCgroup has the driver that the options ask for reach the runtime.
// Where no systemd runs the runtime says so, and nothing is left.
func TestSystemdCgroup(t *testing.T) {
	f := newFixture(t, func(id string) any {
		s := spec(id, "true")
		s["linux"].(map[string]any)["cgroupsPath"] = "system.slice:berth:" + id
		return s
	})
	_, err := f.tryCreate(&task.CreateTaskRequest{Options: mustAny(t, &runc.Options{SystemdCgroup: true})})
	if _, serr := os.Stat("/run/systemd/system"); serr != nil {
		code(t, "create without systemd", err, codes.Unknown)
		if err == nil || !strings.Contains(err.Error(), ociRuntime()+" create: exit status 1: ") {
			t.Errorf("error %v", err)
		}
		f.checkClean()
		f.shutdown()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	f.startTask("")
	f.wait("", 0)
	f.delete("")
	f.shutdown()
}

// TestHugePages has the shim do without transparent huge pages, which would make
// it twice as large, and the container not.
func TestHugePages(t *testing.T) {
	enabled := func(pid int) string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, value, ok := strings.Cut(string(data), "\nTHP_enabled:\t")
		if !ok {
			t.Skip("this kernel does not tell")
		}
		return value[:1]
	}
	f := container(t, "sleep", "600")
	pid := f.run(&task.CreateTaskRequest{})
	f.exec("e1", &task.ExecProcessRequest{}, "sleep", "600")
	exec := f.startTask("e1")
	for what, c := range map[string]struct {
		pid  int
		want string
	}{"shim": {f.cmd.Process.Pid, "0"}, "init": {pid, "1"}, "exec": {exec, "1"}} {
		if got := enabled(c.pid); got != c.want {
			t.Errorf("%s: THP_enabled is %s", what, got)
		}
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}
