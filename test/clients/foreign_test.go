package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// foreignName is a runtime name by which berthd finds Debian's shim, whose own name
// means berth's: a link of that name is in the daemon's PATH.
const foreignName = "io.berth.debian.v2"

// foreign is a daemon under which containers are given to containerd's shim for
// runc, of Debian's package.
type foreign struct {
	ctr
	shim string
}

func newForeign(t *testing.T) foreign {
	t.Helper()
	shim, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Fatalf("%v: run scripts/deps.sh test", err)
	}
	d := start(t)
	bin := filepath.Join(d.Dir, "bin")
	if err := errors.Join(d.Stop(), os.Mkdir(bin, 0o755), os.Symlink(shim, filepath.Join(bin, "containerd-shim-debian-v2"))); err != nil {
		t.Fatal(err)
	}
	d.Env = append(d.Env, "PATH="+bin+":"+os.Getenv("PATH"))
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	f := foreign{ctr{t, programs.Tool("debian/usr/bin/ctr"), d}, shim}
	f.run("images", "import", programs.Image)
	return f
}

// launch runs a container in the background.
func (f foreign) launch(id string, flags []string, args ...string) {
	f.t.Helper()
	args = append([]string{harness.ImageName, id}, args...)
	f.run(append(append([]string{"run", "-d", "--runtime", foreignName}, flags...), args...)...)
}

// shimPID reads which process serves a container.
func (f foreign) shimPID(id string) int {
	f.t.Helper()
	pid := f.recorded(id, "shim.json")
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Base(exe) != "containerd-shim-runc-v2" {
		f.t.Fatalf("the shim is %s, %v", exe, err)
	}
	return pid
}

// recorded reads a pid from a record in a container's bundle.
func (f foreign) recorded(id, file string) int {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.daemon.State, "io.containerd.runtime.v2.task", namespace, id, file))
	if err != nil {
		f.t.Fatal(err)
	}
	var r struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(data, &r); err != nil || r.PID == 0 {
		f.t.Fatalf("%s: %v", data, err)
	}
	return r.PID
}

// over waits until a container has stopped and deletes it; its status is told.
func (f foreign) over(id string, status int) {
	f.t.Helper()
	f.eventually(regexp.QuoteMeta(id)+` +\d+ +STOPPED`, "tasks", "ls")
	if _, errs, code := f.try("tasks", "delete", id); status != 0 && code != status && !strings.Contains(errs, fmt.Sprintf("exit code %d", status)) {
		f.t.Errorf("delete %s tells %q, exit code %d, want %d", id, errs, code, status)
	}
	f.run("containers", "delete", id)
}

const termScript = "trap 'exit 9' TERM; while :; do sleep 0.1; done"

// TestForeignShim leads containers through their lives under containerd's shim.
func TestForeignShim(t *testing.T) {
	f := newForeign(t)
	m := mark(t)
	out, errs, code := f.try("run", "--rm", "--runtime", f.shim, harness.ImageName, m+"-fg", "sh", "-c", "echo hello; echo oops >&2; exit 5")
	if out != "hello\n" || !strings.Contains(errs, "oops") || code != 5 {
		t.Errorf("by path: %q, %q, code %d", out, errs, code)
	}
	if _, errs, code := f.try("run", "--rm", "--runtime", foreignName, harness.ImageName, m+"-no", "/no/such/program"); code == 0 || !strings.Contains(errs, "no such file") {
		t.Errorf("a program that is not there: %q, code %d", errs, code)
	}
	id := m + "-bg"
	f.launch(id, nil, "sh", "-c", termScript)
	f.want(f.run("containers", "ls"), regexp.QuoteMeta(id)+` .*`+regexp.QuoteMeta(foreignName))
	f.want(f.run("tasks", "exec", "--exec-id", "e1", id, "echo", "from exec"), `^from exec\n$`)
	if _, _, code := f.try("tasks", "exec", "--exec-id", "e2", id, "sh", "-c", "exit 4"); code != 4 {
		t.Errorf("exec: code %d", code)
	}
	f.want(f.run("tasks", "ps", id), `(?m)^\d+`)
	f.want(f.run("tasks", "metrics", id), `(?i)memory`)
	f.run("tasks", "pause", id)
	f.want(f.run("tasks", "ls"), regexp.QuoteMeta(id)+` +\d+ +PAUSED`)
	f.run("tasks", "resume", id)
	if _, errs, code := f.try("tasks", "delete", id); code == 0 || errs == "" {
		t.Error("a running task was deleted")
	}
	f.run("tasks", "kill", "--signal", "SIGTERM", id)
	f.over(id, 9)
}

// TestForeignEvents has the events of a container's life come once each, in order,
// under containerd's shim.
func TestForeignEvents(t *testing.T) {
	f := newForeign(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.binary, "--address", f.daemon.Address, "events")
	log := &output{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(log.String(), "/namespaces/update") { // the subscription stands
		if time.Now().After(deadline) {
			t.Fatalf("no subscription: %s", log.String())
		}
		f.run("namespaces", "label", namespace, "seen=yes")
	}
	f.run("run", "--rm", "--runtime", foreignName, harness.ImageName, mark(t)+"-ev", "true")
	for !strings.Contains(log.String(), "/containers/delete") {
		if time.Now().After(deadline) {
			t.Fatalf("events: %s", log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	var got []string
	for _, topic := range regexp.MustCompile(`/tasks/[a-z-]+`).FindAllString(log.String(), -1) {
		got = append(got, strings.TrimPrefix(topic, "/tasks/"))
	}
	if want := "create start exit delete"; strings.Join(got, " ") != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestForeignDaemonKilled kills the daemon above containerd's shims: what runs is
// adopted, what ended meanwhile is known.
func TestForeignDaemonKilled(t *testing.T) {
	f := newForeign(t)
	runs, ends := mark(t)+"-runs", mark(t)+"-ends"
	f.launch(runs, nil, "sh", "-c", termScript)
	f.launch(ends, nil, "sh", "-c", "sleep 1; exit 3")
	pid, init := f.shimPID(runs), f.recorded(ends, "init.json")
	if err := f.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); syscall.Kill(init, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the container does not end")
		}
	}
	if err := f.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	f.over(ends, 3)
	if got := f.shimPID(runs); got != pid {
		t.Errorf("shim %d, before %d", got, pid)
	}
	if _, _, code := f.try("tasks", "exec", "--exec-id", "e", runs, "sh", "-c", "exit 6"); code != 6 {
		t.Errorf("exec: code %d", code)
	}
	f.run("tasks", "kill", "--signal", "SIGTERM", runs)
	f.over(runs, 9)
}

// TestForeignShimKilled kills containerd's shim: the container runs on, its true
// status is told, and the same again with the daemon killed first.
func TestForeignShimKilled(t *testing.T) {
	f := newForeign(t)
	for name, down := range map[string]bool{"up": false, "down": true} {
		id := mark(t) + "-" + name
		f.launch(id, nil, "sh", "-c", termScript)
		pid := f.shimPID(id)
		if down {
			if err := f.daemon.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if down {
			if err := f.daemon.Start(); err != nil {
				t.Fatal(err)
			}
		}
		f.eventually(regexp.QuoteMeta(id)+` +\d+ +RUNNING`, "tasks", "ls")
		f.run("tasks", "kill", "--signal", "SIGTERM", id)
		f.eventually(regexp.QuoteMeta(id)+` +\d+ +STOPPED`, "tasks", "ls")
		status := 9
		if down {
			status = 0 // its parent was pid 1 while there was no daemon, and what that has reaped is not always told
		}
		f.over(id, status)
	}
}

// TestForeignPod has the containers of a pod find one of containerd's shims.
func TestForeignPod(t *testing.T) {
	f := newForeign(t)
	flags := []string{"--annotation", "io.kubernetes.cri.sandbox-id=pod"}
	ids := []string{mark(t) + "-a", mark(t) + "-b"}
	for _, id := range ids {
		f.launch(id, flags, "sh", "-c", termScript)
	}
	if a, b := f.shimPID(ids[0]), f.shimPID(ids[1]); a != b {
		t.Errorf("shims %d and %d", a, b)
	}
	for _, id := range ids {
		f.run("tasks", "kill", "--signal", "SIGTERM", id)
		f.over(id, 9)
	}
}
