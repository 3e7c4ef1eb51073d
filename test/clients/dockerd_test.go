package clients

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/test/harness"
)

// docker is Debian's dockerd, which has berthd run its containers.
type docker struct {
	t    *testing.T
	d    *harness.Daemon
	dir  string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

// startDocker starts dockerd, without networks: those are none of ours.
func startDocker(t *testing.T, d *harness.Daemon) *docker {
	t.Helper()
	if _, err := os.Stat(programs.Tool("debian/usr/bin/dockerd")); err != nil {
		needed.Missing(t, err)
	}
	dir, err := os.MkdirTemp("", "berth-docker-")
	if err != nil {
		t.Fatal(err)
	}
	k := &docker{t: t, d: d, dir: dir}
	t.Cleanup(k.close)
	k.start()
	return k
}

// group is the control group of what docker runs here. What a run that was killed
// left in its own is in nobody's way.
func (k *docker) group() string { return "/" + filepath.Base(k.dir) }

func (k *docker) start() {
	k.t.Helper()
	at := func(name string) string { return filepath.Join(k.dir, name) }
	k.cmd = exec.Command(programs.Tool("debian/usr/bin/dockerd"), "--containerd", k.d.Address, "--live-restore",
		"--data-root", at("root"), "--exec-root", at("run"), "-H", "unix://"+at("docker.sock"), "--pidfile", at("pid"),
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--cgroup-parent", k.group())
	k.cmd.Stdout, k.cmd.Stderr = &k.log, &k.log
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.done = make(chan struct{})
	go func() {
		k.cmd.Wait()
		close(k.done)
	}()
	k.eventually("dockerd answers", func() error { return second(k.try("version")) })
}

func second[T any](_ T, err error) error { return err }

// end ends dockerd by a signal.
func (k *docker) end(signal os.Signal) {
	k.t.Helper()
	if err := k.cmd.Process.Signal(signal); err != nil {
		k.t.Fatal(err)
	}
	select {
	case <-k.done:
	case <-time.After(time.Minute):
		k.t.Fatal("dockerd does not end")
	}
}

// close removes everything of docker's.
func (k *docker) close() {
	if k.t.Failed() {
		k.t.Logf("dockerd's log:\n%s", tail(k.log.String(), 40))
	}
	if k.cmd == nil || k.cmd.Process == nil {
		return
	}
	if ids, err := k.try("ps", "-aq"); err == nil && ids != "" {
		if _, err := k.try(append([]string{"rm", "-f"}, strings.Fields(ids)...)...); err != nil {
			k.t.Error(err)
		}
	}
	k.end(unix.SIGTERM)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		k.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], k.dir) {
			if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
				k.t.Error(err)
			}
		}
	}
	if err := os.RemoveAll(k.dir); err != nil {
		k.t.Error(err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup" + k.group(), "/sys/fs/cgroup/*" + k.group()} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			k.t.Error(err)
		}
		for _, group := range groups {
			if err := os.Remove(group); err != nil {
				k.t.Error(err)
			}
		}
	}
}

// try runs docker's client.
func (k *docker) try(args ...string) (string, error) {
	cmd := exec.CommandContext(k.t.Context(), "timeout", append([]string{"60", programs.Tool("debian/usr/bin/docker"), "-H", "unix://" + filepath.Join(k.dir, "docker.sock")}, args...)...)
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// run runs docker's client, which has to succeed.
func (k *docker) run(args ...string) string {
	k.t.Helper()
	out, err := k.try(args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

func (k *docker) eventually(what string, ok func() error) {
	k.t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	k.t.Fatalf("%s: %v", what, err)
}

// wants waits until a command of docker's prints something.
func (k *docker) wants(want string, args ...string) {
	k.t.Helper()
	k.eventually(strings.Join(args, " "), func() error {
		out, err := k.try(args...)
		if err == nil && out != want {
			err = fmt.Errorf("%q, want %q", out, want)
		}
		return err
	})
}

// busybox makes an image of busybox.
func (k *docker) busybox() {
	k.t.Helper()
	root := filepath.Join(k.dir, "busybox")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		k.t.Fatal(err)
	}
	script := `cp "$(command -v busybox)" bin/busybox && for a in sh echo sleep cat dd; do ln -s busybox bin/$a; done && tar -cf ../busybox.tar .`
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%v: %s", err, out)
	}
	k.run("import", filepath.Join(k.dir, "busybox.tar"), "busybox:1")
}

// TestDockerd: Debian's docker runs its containers by berthd, and they outlive it,
// and dockerd, in any way that either may end.
func TestDockerd(t *testing.T) {
	d := start(t)
	k := startDocker(t, d)
	k.busybox()
	if out := k.run("run", "--rm", "--network", "none", "busybox:1", "/bin/echo", "hello"); out != "hello" {
		t.Errorf("run: %q", out)
	}
	if _, err := k.try("run", "--rm", "--network", "none", "busybox:1", "/bin/sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exit 7: %v", err)
	}

	k.run("run", "-d", "--name", "web", "--network", "none", "busybox:1", "/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done")
	if out := k.run("exec", "web", "/bin/echo", "within"); out != "within" {
		t.Errorf("exec: %q", out)
	}
	if out := k.run("top", "web"); !strings.Contains(out, "while") {
		t.Errorf("top: %q", out)
	}
	if out := k.run("stats", "--no-stream", "--format", "{{.PIDs}}", "web"); out == "" || out == "0" {
		t.Errorf("stats: %q", out)
	}
	k.run("pause", "web")
	k.wants("true", "inspect", "-f", "{{.State.Paused}}", "web")
	k.run("unpause", "web")

	lines := func() int { return strings.Count(k.run("logs", "web"), "\n") }
	moves := func() {
		t.Helper()
		from := lines()
		k.eventually("the log goes on", func() error {
			if now := lines(); now <= from+2 {
				return fmt.Errorf("%d lines, and %d before", now, from)
			}
			return nil
		})
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	moves() // while the daemon is away
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	k.eventually("exec after a restart", func() error { return second(k.try("exec", "web", "/bin/echo")) })
	k.end(unix.SIGKILL)
	k.start()
	k.wants("true", "inspect", "-f", "{{.State.Running}}", "web")
	moves()
	k.run("stop", "-t", "1", "web")
	k.wants("137", "inspect", "-f", "{{.State.ExitCode}}", "web")
	all := strings.Fields(k.run("logs", "web"))
	for i, line := range all {
		if line != fmt.Sprint(i+1) {
			t.Errorf("line %d of the log is %q", i+1, line)
			break
		}
	}

	k.run("run", "-d", "--name", "again", "--restart", "on-failure:2", "--network", "none", "busybox:1", "/bin/sh", "-c", "exit 3")
	k.wants("2 3 exited", "inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}}", "again")
	k.run("run", "-d", "--name", "hog", "-m", "16m", "--network", "none", "busybox:1", "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M")
	k.wants("true 137", "inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "hog")

	// What ends while berthd is away is known afterwards.
	k.run("run", "-d", "--name", "late", "--network", "none", "busybox:1", "/bin/sh", "-c", "sleep 2; exit 5")
	init := k.run("inspect", "-f", "{{.State.Pid}}", "late")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	k.eventually("late ends by itself", func() error {
		if _, err := os.Stat(filepath.Join("/proc", init)); err == nil {
			return fmt.Errorf("process %s is there", init)
		}
		return nil
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	k.wants("5 exited", "inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "late")
}
