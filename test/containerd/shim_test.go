package containerd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// TestLife leads containers through their lives.
func TestLife(t *testing.T) {
	d := newDaemon(t)
	out, status := d.status("run", "--rm", "--runtime", runtimeName, harness.ImageName, "prints", "sh", "-c", "echo out; echo err >&2; exit 5")
	if out != "out\n" || status != 5 {
		t.Errorf("run: %q, %d", out, status)
	}
	if out, status = d.status("run", "--rm", "--runtime", runtimeName, harness.ImageName, "none", "/no/such/program"); status == 0 {
		t.Errorf("a program that is not there: %q, %d", out, status)
	}
	d.run("a", "sleep", "1000")
	d.until("a", "RUNNING")
	if out, status = d.status("tasks", "exec", "--exec-id", "x", "a", "sh", "-c", "echo inside; exit 7"); out != "inside\n" || status != 7 {
		t.Errorf("exec: %q, %d", out, status)
	}
	if out = d.ctr("tasks", "ps", "a"); len(strings.Split(strings.TrimSpace(out), "\n")) != 2 {
		t.Errorf("ps: %q", out)
	}
	if out = d.ctr("tasks", "metrics", "a"); !strings.Contains(out, "memory") {
		t.Errorf("metrics: %q", out)
	}
	d.ctr("tasks", "pause", "a")
	d.until("a", "PAUSED")
	d.ctr("tasks", "resume", "a")
	d.until("a", "RUNNING")
	d.end("a", 137)
}

// TestDaemonKilled kills containerd under containers: they run on, and what
// ended meanwhile is known afterwards.
func TestDaemonKilled(t *testing.T) {
	d := newDaemon(t)
	d.run("runs", "sleep", "1000")
	d.run("ends", "sh", "-c", "sleep 1; exit 3")
	d.until("runs", "RUNNING")
	shims := fmt.Sprint(d.shims())
	d.kill()
	d.start()
	d.until("runs", "RUNNING")
	if got := fmt.Sprint(d.shims()); got != shims {
		t.Errorf("shims %s, before %s", got, shims)
	}
	if out, status := d.status("tasks", "exec", "--exec-id", "x", "runs", "sh", "-c", "exit 9"); status != 9 {
		t.Errorf("exec: %q, %d", out, status)
	}
	d.until("ends", "STOPPED")
	d.end("ends", 3)
	d.end("runs", 137)
}

// TestShimKilled kills the shim: containerd has "delete" clean up.
func TestShimKilled(t *testing.T) {
	d := newDaemon(t)
	d.run("a", "sleep", "1000")
	d.until("a", "RUNNING")
	shims := d.shims()
	if len(shims) != 1 {
		t.Fatalf("shims %v", shims)
	}
	if err := syscall.Kill(shims[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.eventually("the task to be gone", func() error {
		if got := d.state("a"); got != "" {
			return errors.New(got)
		}
		return nil
	})
	d.ctr("containers", "rm", "a")
}

// podFlags make a container one of the pod p.
var podFlags = []string{"--annotation", "io.kubernetes.cri.sandbox-id=p"}

// TestPod runs containers of a pod: they share one shim, and each has a life of
// its own.
func TestPod(t *testing.T) {
	d := newDaemon(t)
	const pod = 3
	var all sync.WaitGroup
	for n := range pod {
		all.Go(func() { d.run(fmt.Sprintf("c%d", n), append(podFlags, "--", "sleep", "1000")...) })
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for n := range pod {
		d.until(fmt.Sprintf("c%d", n), "RUNNING")
	}
	if shims := d.shims(); len(shims) != 1 {
		t.Errorf("a pod of %d containers has shims %v", pod, shims)
	}
	d.run("alone", "sleep", "1000")
	if shims := d.shims(); len(shims) != 2 {
		t.Errorf("pod and container have shims %v", shims)
	}
	d.end("alone", 137)
	d.end("c0", 137) // maybe the one that the shim was started for
	for n := 1; n < pod; n++ {
		if out, status := d.status("tasks", "exec", "--exec-id", "x", fmt.Sprintf("c%d", n), "sh", "-c", "exit 4"); status != 4 {
			t.Errorf("exec beside one that was deleted: %q, %d", out, status)
		}
	}
	d.kill()
	d.start()
	for n := 1; n < pod; n++ {
		d.until(fmt.Sprintf("c%d", n), "RUNNING")
		d.end(fmt.Sprintf("c%d", n), 137)
	}
}

// TestPodShimKilled kills the shim of a pod: nothing is left of any container.
func TestPodShimKilled(t *testing.T) {
	d := newDaemon(t)
	for _, id := range []string{"a", "b"} {
		d.run(id, append(podFlags, "--", "sleep", "1000")...)
	}
	shims := d.shims()
	if len(shims) != 1 {
		t.Fatalf("shims %v", shims)
	}
	if err := syscall.Kill(shims[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		d.eventually(id+" to be gone", func() error {
			if got := d.state(id); got != "" {
				return errors.New(got)
			}
			return nil
		})
		d.ctr("containers", "rm", id)
	}
	if groups, err := harness.Cgroups("berth-c-"); err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %v, %v", groups, err)
	}
}

// TestOutput has containers print much and exit at once: all of it arrives.
func TestOutput(t *testing.T) {
	d := newDaemon(t)
	const size = 64 << 10
	for n := range 5 {
		out, status := d.status("run", "--rm", "--runtime", runtimeName, harness.ImageName, fmt.Sprintf("p%d", n),
			"sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size))
		if len(out) != size || status != 0 {
			t.Errorf("%d: %d bytes, status %d", n, len(out), status)
		}
	}
}

// TestLog looks for the shim's words in containerd's log.
func TestLog(t *testing.T) {
	d := newDaemon(t)
	d.run("a", "sleep", "1000")
	d.end("a", 137)
	d.eventually("the shim's words in containerd's log", func() error {
		data, err := os.ReadFile(d.log.Name())
		if err == nil && !strings.Contains(string(data), "task=a") {
			err = errors.New("not there")
		}
		return err
	})
}
