package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/berthd/berth/bench/internal/daemon"

	"golang.org/x/sys/unix"
)

// direct drives the OCI runtime without a daemon. The benchmark must be a
// subreaper: the container's init process becomes its child.
type direct struct {
	r    *Run
	root string // the runtime's state
	base string // bundles, in memory as those of the daemons
	data string // what containers write
}

func newDirect(r *Run) (*direct, error) {
	base := filepath.Join(r.WorkDir, "limit")
	state := filepath.Join(base, "state")
	d := &direct{r: r, root: filepath.Join(state, "oci"), base: state, data: filepath.Join(base, "data")}
	for _, dir := range []string{d.base, d.data} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return d, daemon.MountState(state)
}

// bundle is one container of the limit.
type bundle struct {
	id, dir string
	pid     int
}

// mountRootfs makes the bundle's root file system, an overlay like a
// snapshotter's.
func (d *direct) mountRootfs(id string) (*bundle, error) {
	b := &bundle{id: id, dir: filepath.Join(d.base, id)}
	data := filepath.Join(d.data, id)
	for _, dir := range []string{filepath.Join(b.dir, "rootfs"), filepath.Join(data, "upper"), filepath.Join(data, "work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", d.r.Rootfs, data, data)
	return b, unix.Mount("overlay", filepath.Join(b.dir, "rootfs"), "overlay", 0, opts)
}

func (d *direct) writeSpec(b *bundle, args ...string) error {
	s, err := payloadSpec(d.r.Label, b.id, args...)
	if err != nil {
		return err
	}
	s.Root.Path = "rootfs"
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "config.json"), data, 0o644)
}

func (d *direct) create(b *bundle, stdout *os.File) error {
	pidFile := filepath.Join(b.dir, "pid")
	if err := d.run(stdout, "create", "--bundle", b.dir, "--pid-file", pidFile, b.id); err != nil {
		return err
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	b.pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	return err
}

func (d *direct) start(b *bundle) error { return d.run(nil, "start", b.id) }

func (d *direct) exec(b *bundle, args ...string) error {
	return d.run(nil, append([]string{"exec", b.id}, args...)...)
}

func (d *direct) wait(b *bundle) (int, error) {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(b.pid, &ws, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return ws.ExitStatus(), err
		}
	}
}

func (d *direct) delete(b *bundle) error { return d.run(nil, "delete", b.id) }

func (d *direct) removeRootfs(b *bundle) error {
	if err := unix.Unmount(filepath.Join(b.dir, "rootfs"), 0); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(b.dir), os.RemoveAll(filepath.Join(d.data, b.id)))
}

// run calls the runtime. Its stderr goes to a file because a pipe would be
// held open by the container.
func (d *direct) run(stdout *os.File, args ...string) error {
	errLog, err := os.CreateTemp(d.base, "stderr-")
	if err != nil {
		return err
	}
	defer os.Remove(errLog.Name())
	defer errLog.Close()
	cmd := exec.Command(d.r.OCIRuntime, append([]string{"--root", d.root}, args...)...)
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.Stderr = errLog
	if err := cmd.Run(); err != nil {
		msg, _ := os.ReadFile(errLog.Name())
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(d.r.OCIRuntime), args[0], err, strings.TrimSpace(string(msg)))
	}
	return nil
}

// up creates and starts a container.
func (d *direct) up(id string, stdout *os.File, args ...string) (*bundle, error) {
	b, err := d.mountRootfs(id)
	if err != nil {
		return nil, err
	}
	if err := d.writeSpec(b, args...); err != nil {
		return nil, err
	}
	if err := d.create(b, stdout); err != nil {
		return nil, err
	}
	return b, d.start(b)
}

// down waits for a container's end and removes it.
func (d *direct) down(b *bundle) error {
	_, waitErr := d.wait(b)
	return errors.Join(waitErr, d.delete(b), d.removeRootfs(b))
}
