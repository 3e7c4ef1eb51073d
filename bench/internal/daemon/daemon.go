// Package daemon starts, kills and restarts the daemons under test, each in
// its own root and state directory, and knows all processes that belong to
// them.
package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/config"
	"github.com/berthd/berth/bench/internal/procfs"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// Namespace is the containerd namespace all scenarios use.
const Namespace = "bench"

// Daemon is one running (or stopped) daemon with its own directories.
type Daemon struct {
	Label  string // "A" or "B"
	Config *config.Daemon
	Dir    string
	Socket string
	Client *client.Client

	env      []string
	log      string
	launcher *exec.Cmd
	cpuGroup string
	requests io.WriteCloser

	mu      sync.Mutex
	pid     int
	gone    chan struct{}
	started chan launcherEvent
	exited  map[int]chan struct{}
	startAt time.Time
}

// New prepares directories below base and starts the launcher, not the daemon.
func New(label string, d *config.Daemon, base, log string, vars map[string]string) (*Daemon, error) {
	dir := filepath.Join(base, strings.ToLower(label))
	all := map[string]string{
		"root":   filepath.Join(dir, "root"),
		"state":  filepath.Join(dir, "state"),
		"socket": filepath.Join(dir, "d.sock"),
		"config": filepath.Join(dir, "config"),
	}
	for k, v := range vars {
		all[k] = v
	}
	x := &Daemon{
		Label: label, Config: d.Expanded(all), Dir: dir, Socket: all["socket"], log: log,
		env:     append(os.Environ(), d.Expanded(all).Env...),
		started: make(chan launcherEvent, 1),
		exited:  map[int]chan struct{}{},
	}
	if len(x.Socket) > 90 {
		return nil, fmt.Errorf("socket path is too long: %s", x.Socket)
	}
	if err := x.writeDirs(all["config"]); err != nil {
		return nil, err
	}
	return x, x.startLauncher()
}

func (d *Daemon) writeDirs(configPath string) error {
	for _, sub := range []string{"root", "state", "fifo"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, sub), 0o711); err != nil {
			return err
		}
	}
	if err := MountState(filepath.Join(d.Dir, "state")); err != nil {
		return err
	}
	return os.WriteFile(configPath, []byte(d.Config.ConfigTemplate), 0o644)
}

// MountState puts a directory in memory, as the state of a daemon is by default:
// /run is a tmpfs on nearly every machine.
func MountState(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("tmpfs at %s: %w", dir, err)
	}
	return nil
}

func (d *Daemon) startLauncher() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, LauncherArg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.launcher, d.requests = cmd, in
	d.cpuGroup = joinCPUGroup(d.Label, cmd.Process.Pid)
	go d.readEvents(out)
	return nil
}

func (d *Daemon) readEvents(r io.Reader) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		var e launcherEvent
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			continue
		}
		d.mu.Lock()
		switch e.Kind {
		case "exit":
			if ch := d.exited[e.Pid]; ch != nil {
				close(ch)
				delete(d.exited, e.Pid)
			}
		case "started":
			ch := make(chan struct{})
			d.exited[e.Pid] = ch
			d.pid, d.gone = e.Pid, ch
			d.startAt = time.Unix(0, e.AtNanos)
		}
		d.mu.Unlock()
		if e.Kind != "exit" {
			d.started <- e
		}
	}
}

// Start starts the daemon and returns once its Version call answers. The
// duration runs from just before the fork to the first answer.
func (d *Daemon) Start(ctx context.Context) (time.Duration, error) {
	argv := d.Config.Command
	bin, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return 0, err
	}
	req := launcherRequest{Argv: append([]string{bin}, argv[1:]...), Env: d.env, Log: d.log}
	if err := json.NewEncoder(d.requests).Encode(req); err != nil {
		return 0, err
	}
	var ev launcherEvent
	select {
	case ev = <-d.started:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if ev.Kind != "started" {
		return 0, errors.New(ev.Text)
	}
	d.mu.Lock()
	gone := d.gone
	d.mu.Unlock()

	c, err := dialUntilServing(ctx, d.Socket, gone, d.Config.Runtime)
	if err != nil {
		return 0, fmt.Errorf("%s does not serve: %w (log: %s)", d.Config.Name, err, d.LogTail(300))
	}
	took := time.Since(d.startAt)
	d.Client = c
	return took, nil
}

// StartedAt is the wall clock just before the daemon's latest fork.
func (d *Daemon) StartedAt() time.Time { return d.startAt }

// Kill sends SIGKILL to the daemon alone and waits until it is gone.
func (d *Daemon) Kill() error { return d.signal(syscall.SIGKILL, 10*time.Second) }

// Stop ends the daemon in the ordinary way.
func (d *Daemon) Stop() error {
	if err := d.signal(syscall.SIGTERM, 10*time.Second); err == nil {
		return nil
	}
	return d.Kill()
}

func (d *Daemon) signal(s syscall.Signal, patience time.Duration) error {
	d.mu.Lock()
	pid := d.pid
	if pid == 0 {
		d.mu.Unlock()
		return nil
	}
	gone := d.gone
	d.mu.Unlock()
	if d.Client != nil {
		d.Client.Close()
		d.Client = nil
	}
	if err := syscall.Kill(pid, s); err != nil && err != syscall.ESRCH {
		return err
	}
	select {
	case <-gone:
	case <-time.After(patience):
		return fmt.Errorf("%s did not end after %v", d.Config.Name, s)
	}
	d.mu.Lock()
	d.pid = 0
	d.mu.Unlock()
	return nil
}

// Pid is the daemon's process id, 0 when it does not run.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pid
}

// Helpers lists every process the daemon is responsible for, other than the
// daemon itself and the given container processes.
func (d *Daemon) Helpers(containerPids map[int]bool) []int {
	var out []int
	self := d.Pid()
	for _, pid := range procfs.Descendants(d.launcher.Process.Pid) {
		if pid != self && !containerPids[pid] {
			out = append(out, pid)
		}
	}
	return out
}

// LogTail returns the last part of the daemon's log on one line.
func (d *Daemon) LogTail(n int) string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return ""
	}
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// Destroy ends everything the daemon started and removes its directories.
func (d *Daemon) Destroy() error {
	var errs []error
	errs = append(errs, d.Stop())
	errs = append(errs, KillBelow(d.launcher.Process.Pid, 10*time.Second))
	d.requests.Close()
	errs = append(errs, d.launcher.Wait())
	errs = append(errs, RemoveTree(d.Dir))
	removeCgroups(CgroupParent(d.Label))
	return errors.Join(errs...)
}

// RemoveTree unmounts everything below dir and removes it.
func RemoveTree(dir string) error {
	mounts := procfs.MountsBelow(dir)
	for i := len(mounts) - 1; i >= 0; i-- {
		_ = unix.Unmount(mounts[i], unix.MNT_DETACH)
	}
	if left := procfs.MountsBelow(dir); len(left) > 0 {
		return fmt.Errorf("still mounted: %v", left)
	}
	return os.RemoveAll(dir)
}

// Wipe empties the root and state directories of a stopped daemon.
func (d *Daemon) Wipe() error {
	for _, sub := range []string{"root", "state"} {
		dir := filepath.Join(d.Dir, sub)
		if err := RemoveTree(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return MountState(filepath.Join(d.Dir, "state"))
}
