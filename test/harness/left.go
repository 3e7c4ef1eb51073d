package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/berth/maintenance/v1/maintenancegrpc"
)

// Check asks the running daemon to compare its rows with the disk, after a
// collection, and gives what it found as an error.
func (d *Daemon) Check(ctx context.Context) error {
	conn, err := d.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	return Check(ctx, maintenancegrpc.NewMaintenanceClient(conn), &maintenance.CheckRequest{ReadContent: true})
}

// Check waits for a daemon, has it collect, as what a dead one has left is swept
// before the first collection, and gives what a check then finds as an error. What is
// worth knowing and no damage is none.
func Check(ctx context.Context, client maintenancegrpc.MaintenanceClient, r *maintenance.CheckRequest) error {
	if _, err := client.Collect(ctx, &maintenance.CollectRequest{}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	stream, err := client.Check(ctx, r, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	var problems []error
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.Join(problems...)
		}
		if err != nil {
			return errors.Join(append(problems, fmt.Errorf("check: %w", err))...)
		}
		if !p.Note {
			problems = append(problems, fmt.Errorf("%s %s %s: %s", p.Kind, p.Namespace, p.Object, p.Text))
		}
	}
}

// leftTimeout is how long things that are on their way out may take.
const leftTimeout = 10 * time.Second

// Left tells what there is of a stopped daemon whose containers are all gone:
// mounts below its directory, processes that refer to it, bundles, sockets. It
// waits a moment for what is on its way out.
func (d *Daemon) Left() error {
	deadline := time.Now().Add(leftTimeout)
	for {
		err := errors.Join(d.mounts(), d.processes(), d.files())
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Mounts lists the mount points below the daemon's directory.
func (d *Daemon) Mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], d.Dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

func (d *Daemon) mounts() error {
	points, err := d.Mounts()
	if err == nil && len(points) > 0 {
		err = fmt.Errorf("mounts left: %v", points)
	}
	return err
}

// Processes lists, as "pid command", the processes other than the daemon that
// have its directory in their arguments, environment or working directory.
// Zombies count too, except those that wait for a lazy pid 1.
func (d *Daemon) Processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == d.PID() || pid == os.Getpid() {
			continue
		}
		if command, ok := d.refers(pid); ok {
			found = append(found, fmt.Sprintf("%d %s", pid, command))
		}
	}
	return found, nil
}

// refers tells whether a process has to do with the daemon, and its command.
func (d *Daemon) refers(pid int) (string, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	args, _ := os.ReadFile(dir + "cmdline")
	env, _ := os.ReadFile(dir + "environ")
	cwd, _ := os.Readlink(dir + "cwd")
	command := strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")
	for _, text := range []string{string(args), string(env), cwd} {
		if strings.Contains(text, d.Dir+"/") {
			return command, true
		}
	}
	return "", false
}

func (d *Daemon) processes() error {
	found, err := d.Processes()
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("processes left: %q", found)
	}
	return err
}

// files looks for bundles and shim sockets, and for temporary names anywhere.
func (d *Daemon) files() error {
	var left []string
	for _, pattern := range []string{"io.containerd.runtime.v2.task/*/*", "s/*", "runc/*/*"} {
		found, err := filepath.Glob(filepath.Join(d.State, pattern))
		if err != nil {
			return err
		}
		left = append(left, found...)
	}
	err := filepath.WalkDir(d.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if strings.Contains(path, "/fs/") {
			return fs.SkipDir
		}
		if name := entry.Name(); strings.HasPrefix(name, ".tmp-") || strings.HasPrefix(name, ".new-") {
			left = append(left, path)
		}
		return nil
	})
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("files left: %v", left)
	}
	return err
}

// Cgroups lists the control groups, in every hierarchy, whose path holds mark.
func Cgroups(mark string) ([]string, error) {
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if entry.IsDir() && strings.Contains(filepath.Base(path), mark) {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	return found, err
}

// clear ends and unmounts what a failed test left, so that the next one starts
// clean.
func (d *Daemon) clear() error {
	found, err := d.Processes()
	for _, process := range found {
		pid, _, _ := strings.Cut(process, " ")
		if n, convErr := strconv.Atoi(pid); convErr == nil {
			unix.Kill(n, unix.SIGKILL)
		}
	}
	points, mountErr := d.Mounts()
	for i := len(points) - 1; i >= 0; i-- {
		if unmountErr := unix.Unmount(points[i], unix.MNT_DETACH); unmountErr != nil {
			mountErr = errors.Join(mountErr, fmt.Errorf("unmount %s: %w", points[i], unmountErr))
		}
	}
	return errors.Join(err, mountErr)
}

// Zombies counts the zombie children of a process.
func Zombies(pid int) (int, error) {
	count := 0
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		f, err := os.Open(task)
		if err != nil {
			continue
		}
		words := bufio.NewScanner(f)
		words.Split(bufio.ScanWords)
		for words.Scan() {
			stat, err := os.ReadFile("/proc/" + words.Text() + "/stat")
			if err == nil && strings.Contains(string(stat), ") Z ") {
				count++
			}
		}
		f.Close()
	}
	return count, nil
}
