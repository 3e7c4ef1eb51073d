package sys

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// traceVariable has the test binary trace the process of that number.
const traceVariable = "BERTH_TEST_TRACE"

func TestMain(m *testing.M) {
	if text := os.Getenv(traceVariable); text != "" {
		if err := trace(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// trace seizes a process, and lets go of it only when its standard input ends,
// whether the process has ended or not.
func trace(text string) error {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the tracer is a thread
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("seize %d: %w", pid, err)
	}
	fmt.Println("seized")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// TestTraced ends children that another process traces, and which has yet to hear
// of it: their parent can't wait for them, and is told all the same how they ended.
func TestTraced(t *testing.T) {
	child := start(t, "sleep", "1000")
	p := open(t, child, true)
	tracer := exec.Command(os.Args[0])
	tracer.Env = append(os.Environ(), traceVariable+"="+strconv.Itoa(p.PID()))
	tracer.Stderr = os.Stderr
	in, err := tracer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := tracer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Skipf("nothing can be traced here: %q, %v", line, err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Peek(t.Context()); err != nil || status.Signal() != unix.SIGKILL {
		t.Errorf("while it is held: %v, %v", status, err)
	}
	waited := make(chan error, 1)
	go func() {
		status, err := p.Wait(t.Context())
		if err == nil && status.Signal() != unix.SIGKILL {
			err = fmt.Errorf("status %v", status)
		}
		waited <- err
	}()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tracer.Wait(); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("after it was let go: %v", err)
	}
}
