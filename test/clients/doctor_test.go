package clients

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// doctor waits until `berth doctor` says something, and gives its exit code.
func (f foreign) doctor(want string) {
	f.t.Helper()
	var out []byte
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		var err error
		cmd := exec.Command(programs.Path("berth"), "--address", f.daemon.Address, "doctor")
		out, err = cmd.CombinedOutput()
		var failed *exec.ExitError
		if err != nil && !errors.As(err, &failed) {
			f.t.Fatal(err)
		}
		if strings.Contains(string(out), want) {
			return
		}
	}
	f.t.Fatalf("berth doctor says %s, want %q", out, want)
}

// TestForeignDoctor hangs and kills containerd's shim: `berth doctor` tells, though
// nobody had asked that shim for anything, and says what can be done.
func TestForeignDoctor(t *testing.T) {
	f := newForeign(t)
	id := mark(t) + "-a"
	f.launch(id, nil, "sh", "-c", termScript)
	pid := f.shimPID(id)
	f.doctor("nothing is wrong")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.doctor(fmt.Sprintf("kill -9 %d", pid))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.doctor("nothing is wrong")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.doctor("runs on without its shim")
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", f.recorded(id, "init.json"))); err != nil {
		t.Error(err)
	}
	f.run("tasks", "kill", "--signal", "SIGTERM", id)
	f.over(id, 9)
	f.doctor("nothing is wrong")
}
