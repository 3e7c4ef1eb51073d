package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

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
