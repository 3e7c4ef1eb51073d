package sys

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExitStatus reads the status of a child before and after it is reaped. A
// kernel before 6.15 can't tell afterwards; it must then say so.
func TestExitStatus(t *testing.T) {
	p := open(t, start(t, "sleep", "1000"), true)
	if status, ok := p.ExitStatus(); ok {
		t.Fatalf("a living process has status %v", status)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); !ok || status.Signal() != unix.SIGTERM {
		t.Fatalf("zombie: %v %v", status, ok)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); ok && status.Signal() != unix.SIGTERM {
		t.Fatalf("reaped: %v", status)
	} else if !ok {
		t.Log("this kernel keeps no status of a reaped process")
	}
}

// TestExitStatusOfOrphan reads the status of a process that pid 1 reaps, or
// whoever is the subreaper, which may be this test.
func TestExitStatusOfOrphan(t *testing.T) {
	sh := exec.Command("sh", "-c", "(sleep 1000; exit 9) >/dev/null & echo $!; read x")
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	var buf [32]byte
	n, err := out.Read(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, c := range buf[:n] {
		if c >= '0' && c <= '9' {
			pid = pid*10 + int(c-'0')
		}
	}
	p := open(t, pid, true)
	_ = in.Close()
	if err := sh.Wait(); err != nil {
		t.Log(err) // read met the end of its input
	}
	var children []int
	for len(children) == 0 { // until the shell has come to its first command
		if children, err = Children(pid); err != nil {
			t.Fatal(err)
		}
	}
	sleeper, err := os.FindProcess(children[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, ok := p.ExitStatus(); ok && status.ExitStatus() != 9 {
		t.Fatalf("status %v", status)
	} else if !ok {
		t.Log("this kernel keeps no status of a reaped process")
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // ours if the test is a subreaper
}

// TestPeek asks for a status twice before it takes it.
func TestPeek(t *testing.T) {
	for _, c := range []struct {
		script string
		code   int
		signal unix.Signal
	}{{"exit 7", 7, -1}, {"exit 0", 0, -1}, {"kill -9 $$", -1, unix.SIGKILL}, {"kill -TERM $$", -1, unix.SIGTERM}} {
		cmd := exec.Command("sh", "-c", c.script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, err := OpenProcess(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			ws, err := p.Peek(t.Context())
			if err != nil || ws.Exited() && ws.ExitStatus() != c.code || ws.Signaled() && ws.Signal() != c.signal || ws.Exited() == ws.Signaled() {
				t.Errorf("%s: peek: %v, %v", c.script, ws, err)
			}
		}
		ws, err := p.Wait(t.Context())
		if err != nil || ws.Exited() != (c.code >= 0) {
			t.Errorf("%s: wait: %v, %v", c.script, ws, err)
		}
		if _, err := p.Peek(t.Context()); !errors.Is(err, ErrNotChild) {
			t.Errorf("%s: peek at what was reaped: %v", c.script, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLastStatus waits for a child, and only looks at another one's.
func TestLastStatus(t *testing.T) {
	child := open(t, start(t, "sh", "-c", "exit 7"), true)
	if err := child.Exited(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, source := child.LastStatus(); source != SourceWait || status.ExitStatus() != 7 {
		t.Errorf("child: %v from %s", status, source)
	}
	if _, err := ReadStat(child.PID()); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("it was not reaped: %v", err)
	}
	if status, source := child.LastStatus(); source != SourceNone && (source != SourcePidfd || status.ExitStatus() != 7) {
		t.Errorf("reaped before: %v from %s", status, source)
	}

	// The zombie of a parent that does not wait.
	sh := exec.Command("sh", "-c", "sh -c 'exit 5' & exec sleep 1000")
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = sh.Process.Kill(), sh.Wait() }()
	var zombie int
	for zombie == 0 {
		if children, err := Children(sh.Process.Pid); err != nil {
			t.Fatal(err)
		} else if len(children) == 1 && Zombie(children[0]) {
			zombie = children[0]
		}
	}
	if status, source := open(t, zombie, true).LastStatus(); source != SourceZombie || status.ExitStatus() != 5 {
		t.Errorf("zombie: %v from %s", status, source)
	}
	living := open(t, sh.Process.Pid, true)
	if status, source := living.LastStatus(); source != SourceNone {
		t.Errorf("living: %v from %s", status, source)
	}
}
