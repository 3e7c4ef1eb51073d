// Package containerd runs berth-shim under a containerd that is installed: as
// containerd-shim-berth-v2, for the runtime io.containerd.berth.v2.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/test/harness"
)

// runtimeName is what tasks are run with.
const runtimeName = "io.containerd.berth.v2"

// Bounds.
const (
	patience = 30 * time.Second
	look     = 20 * time.Millisecond
)

// programs are built once, by TestMain.
var programs *harness.Programs

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers, so they have to run as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs, err = harness.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Symlink("berth-shim", filepath.Join(dir, "containerd-shim-berth-v2")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// daemon is a containerd with directories of its own.
type daemon struct {
	t       *testing.T
	path    string // of the program
	dir     string
	address string
	log     *os.File
	cmd     *exec.Cmd
	sockets map[string]bool // that were there before
}

// socketDir is where shims of containerd have their sockets.
const socketDir = "/run/containerd/s"

// findContainerd finds one that is installed, or taken out of its package.
func findContainerd() (string, error) {
	path, err := exec.LookPath("containerd")
	if err != nil {
		path, err = exec.LookPath(programs.Tool("debian/usr/bin/containerd"))
	}
	return path, err
}

// ctrProgram is the ctr that is used where it does not matter which.
func ctrProgram() string {
	if path, err := exec.LookPath("ctr"); err == nil {
		return path
	}
	return programs.Tool("debian/usr/bin/ctr")
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	path, err := findContainerd()
	if err != nil {
		needed.Missing(t, err)
	}
	dir, err := os.MkdirTemp("/tmp", "berth-c-")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, path: path, dir: dir, address: filepath.Join(dir, "c.sock"), sockets: map[string]bool{}}
	for _, path := range d.shimSockets() {
		d.sockets[path] = true
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n[debug]\nlevel = \"debug\"\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), d.address)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	d.start()
	d.ctr("image", "import", programs.Image)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(d.path, "--config", filepath.Join(d.dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.Env = append(os.Environ(), "PATH="+programs.Dir+":"+os.Getenv("PATH"))
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.eventually("containerd to serve", func() error {
		_, err := d.try("version")
		return err
	})
}

// kill ends containerd as a crash would.
func (d *daemon) kill() {
	if d.cmd != nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		d.cmd = nil
	}
}

// close ends containerd, and looks for what is left of its shims.
func (d *daemon) close() {
	d.kill()
	if d.t.Failed() {
		data, _ := os.ReadFile(d.log.Name())
		d.t.Logf("containerd's log, its end:\n%s", data[max(0, len(data)-8<<10):])
	}
	_ = d.log.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := d.left()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			d.t.Errorf("left behind: %v", err)
			break
		}
		time.Sleep(look)
	}
	for _, pid := range d.shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], d.dir+"/") {
			_ = syscall.Unmount(fields[4], syscall.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Error(err)
	}
}

// left names shims, sockets and mounts that are still there.
func (d *daemon) left() error {
	var errs []error
	if pids := d.shims(); len(pids) > 0 {
		errs = append(errs, fmt.Errorf("shims %v", pids))
	}
	for _, path := range d.shimSockets() {
		if !d.sockets[path] {
			errs = append(errs, fmt.Errorf("socket %s", path))
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], d.dir+"/") {
			errs = append(errs, fmt.Errorf("mount %s", fields[4]))
		}
	}
	return errors.Join(append(errs, err)...)
}

func (d *daemon) shimSockets() []string {
	found, _ := filepath.Glob(socketDir + "/*")
	return found
}

// shims finds the pids of the shims of this daemon.
func (d *daemon) shims() []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		data, _ := os.ReadFile(file)
		args := strings.Split(string(data), "\x00")
		if len(args) > 2 && args[0] == "berth-shim" && args[1] == "serve" && strings.Contains(string(data), d.dir+"/") {
			var pid int
			if _, err := fmt.Sscanf(file, "/proc/%d/cmdline", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// try runs ctr.
func (d *daemon) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, ctrProgram(), append([]string{"--address", d.address, "--namespace", "berth"}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ctr %v: %w: %s", args, err, errOut.String())
	}
	return out.String(), nil
}

// ctr runs ctr, which has to succeed.
func (d *daemon) ctr(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// status runs ctr for its exit status.
func (d *daemon) status(args ...string) (string, int) {
	d.t.Helper()
	out, err := d.try(args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	if exit != nil {
		return out, exit.ExitCode()
	}
	return out, 0
}

func (d *daemon) eventually(what string, condition func() error) {
	d.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(look) {
		if err = condition(); err == nil {
			return
		}
	}
	d.t.Fatalf("waited in vain for %s: %v", what, err)
}

// state gives what "ctr tasks ls" says of a task; "" if there is none.
func (d *daemon) state(id string) string {
	out, err := d.try("tasks", "ls")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == id {
			return fields[2]
		}
	}
	return ""
}

// until waits for a task's state.
func (d *daemon) until(id, state string) {
	d.t.Helper()
	d.eventually(id+" to be "+state, func() error {
		if got := d.state(id); got != state {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

// run makes a container that runs in the background.
func (d *daemon) run(id string, argsAndCommand ...string) {
	d.t.Helper()
	var flags, command []string
	for i, arg := range argsAndCommand {
		if arg == "--" {
			flags, command = argsAndCommand[:i], argsAndCommand[i+1:]
			break
		}
	}
	if command == nil {
		command = argsAndCommand
	}
	args := append([]string{"run", "-d", "--null-io", "--runtime", runtimeName}, flags...)
	d.ctr(append(append(args, harness.ImageName, id), command...)...)
}

// end kills a task and removes its container; the exit status has to be want.
func (d *daemon) end(id string, want uint32) {
	d.t.Helper()
	if d.state(id) == "RUNNING" {
		d.ctr("tasks", "kill", "-s", "SIGKILL", id)
	}
	d.until(id, "STOPPED")
	// Its ctr does not tell the status.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, d.address, client.Options{Namespace: "berth"})
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	if exit, err := c.Process(id, "").Delete(ctx); err != nil || exit.Status != want {
		d.t.Errorf("%s: exit status %d, %v, want %d", id, exit.Status, err, want)
	}
	d.ctr("containers", "rm", id)
}
