package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

// What a daemon that was killed while it laid down a layer has left mounted
// goes at the next start; what is in use, and what others made, stays.
func TestStartSweepsMounts(t *testing.T) {
	p := newPlace(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	left, others := filepath.Join(tmp, "berth-mount-1"), filepath.Join(tmp, "other-mount-1")
	for _, dir := range []string{left, others} {
		root := filepath.Join(dir, "root")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(root, 0o700), unix.Mount("tmpfs", root, "tmpfs", 0, "size=8k")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	}
	err := mount.WithTemp(t.Context(), []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, func(root string) error {
		used := filepath.Join(root, "f")
		if err := os.WriteFile(used, nil, 0o600); err != nil {
			return err
		}
		p.start(t).uuid(t)
		_, err := os.Stat(used)
		return err
	})
	if err != nil {
		t.Errorf("a mount in use: %v", err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
	if _, err := os.Lstat(filepath.Join(others, "root")); err != nil {
		t.Error(err)
	}
}
