package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/snapshots/overlay"
)

// Overlay is tried out once for each boot: what a daemon left in the middle of it
// is only there after a start that did not.
func TestProbeOnce(t *testing.T) {
	state, root := t.TempDir(), filepath.Join(t.TempDir(), "overlayfs")
	if err := overlay.Probe(root); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	left := filepath.Join(root, ".probe", "left")
	probed := func() bool {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := probeOnce(state, root)
		if err != nil {
			t.Fatal(err)
		}
		if (found.remap == nil) != (overlay.ProbeRemap(root+"-other") == nil) {
			t.Errorf("remembered of mapped owners: %v", found.remap)
		}
		_, err = os.Stat(left)
		return errors.Is(err, fs.ErrNotExist)
	}
	if !probed() {
		t.Error("not tried out at the first start")
	}
	if probed() {
		t.Error("tried out again at the second")
	}
	if err := os.WriteFile(filepath.Join(state, probedFile), []byte("another boot 1:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !probed() {
		t.Error("not tried out after a reboot")
	}
	other := filepath.Join(t.TempDir(), "overlayfs")
	if err := overlay.Probe(other); err != nil {
		t.Fatal(err)
	}
	if probedFact(other) == probedFact(root) {
		t.Error("two directories have the same mark")
	}
}

// Without its program the driver of images is left out, and says why; what it was
// found to lack is remembered for the boot.
func TestProbeErofs(t *testing.T) {
	state, root := t.TempDir(), filepath.Join(t.TempDir(), "erofs")
	t.Run("program missing", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if err := probeErofs(state, root); !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "erofs-utils") {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	runs := filepath.Join(dir, "runs")
	script := "#!/bin/sh\necho >>" + runs + "\necho broken >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "mkfs.erofs"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for range 2 {
		if err := probeErofs(state, root); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "broken") {
			t.Error(err)
		}
	}
	if data, err := os.ReadFile(runs); err != nil || len(data) != 1 {
		t.Errorf("it ran %d times, %v", len(data), err)
	}
}
