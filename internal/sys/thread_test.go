package sys

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that is started with this in its environment ends its first thread
// and lives on in others, until its standard input ends.
const headless = "BERTH_TEST_HEADLESS"

func init() { // runs on the first thread
	if os.Getenv(headless) != "" {
		go func() {
			_, _ = os.Stdin.Read(make([]byte, 1))
			os.Exit(0)
		}()
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	}
}

// TestFirstThreadEnded has a process outlive its first thread. The kernel shows
// it as a zombie then, which it is not.
func TestFirstThreadEnded(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), headless+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := open(t, cmd.Process.Pid, true)
	for { // until the thread has ended
		s, err := ReadStat(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		if s.State == 'Z' {
			break
		}
	}
	if !p.Alive() || Zombie(p.PID()) || !Alive(p.PID(), p.StartTime()) {
		t.Error("taken for dead")
	}
	if status, ok := p.ExitStatus(); ok {
		t.Errorf("has status %v", status)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("taken for alive")
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
