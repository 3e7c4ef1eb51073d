package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/durable"
)

// Under root only the daemon has business. Through state everybody may pass, as
// containers with users of their own and clients' fifos are below it.
const (
	rootMode  = 0o700
	stateMode = 0o711
)

// holds are the locks that keep a second daemon off.
type holds []*os.File

// claim makes the directories and takes them for this process alone.
func claim(c config.Config) (_ holds, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("berthd has to run as root, not as user %d: it mounts file systems and starts containers", os.Geteuid())
	}
	var h holds
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, d := range []struct {
		what, path string
		mode       os.FileMode
	}{{"root", c.Root, rootMode}, {"state", c.State, stateMode}} {
		if err := makeDir("daemon."+d.what, d.path, d.mode); err != nil {
			return nil, fmt.Errorf("%s %s can't be made: %w", d.what, d.path, err)
		}
		lock, err := lockDir(d.what, d.path)
		if err != nil {
			return nil, err
		}
		h = append(h, lock)
	}
	return h, nil
}

// makeDir makes a directory, and parents that everybody may pass.
func makeDir(op, path string, mode os.FileMode) error {
	if err := durable.MkdirAll(op, filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.MkdirAll(op, path, mode)
}

// Close lets another daemon in.
func (h holds) Close() error {
	var errs []error
	for _, f := range h {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Names under root that clients know (docs/compatibility.md).
const (
	contentDir = "io.containerd.content.v1.content"
	overlayDir = "io.containerd.snapshotter.v1.overlayfs"
	nativeDir  = "io.containerd.snapshotter.v1.native"
	erofsDir   = "io.containerd.snapshotter.v1.erofs"
	database   = "meta.db"
	logsDir    = "logs"
	eventsDir  = "events" // under state
	mountsDir  = "mounts" // under state
)

// shimBinary finds berth-shim: where the configuration says, beside this
// binary, or in PATH.
func shimBinary(configured string) (string, error) {
	const name = "berth-shim"
	if configured != "" {
		path, err := lookPath(configured)
		if err != nil {
			return "", fmt.Errorf("configuration key shim: %w", err)
		}
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	path, err := lookPath(beside)
	if err == nil {
		return path, nil
	}
	if path, inPath := lookPath(name); inPath == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is neither at %s (%w) nor in PATH; install it, or name it in the configuration key shim", name, beside, err)
}

// lookPath finds a program and gives its absolute path.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
