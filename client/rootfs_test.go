package client

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/runtime/spec"
)

func TestReadonlyMounts(t *testing.T) {
	for name, test := range map[string]struct {
		in   *types.Mount
		want mount.Mount
	}{
		"bind": {
			&types.Mount{Type: "bind", Source: "/a", Options: []string{"rw", "rbind"}},
			mount.Mount{Type: "bind", Source: "/a", Options: []string{"rbind", "ro"}},
		},
		"overlay": {
			&types.Mount{Type: "overlay", Source: "overlay", Options: []string{"index=off", "workdir=/w", "upperdir=/u", "lowerdir=/l1:/l2"}},
			mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=/u:/l1:/l2", "ro"}},
		},
		"view": {
			&types.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l1:/l2", "ro"}},
			mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l1:/l2", "ro"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff([]mount.Mount{test.want}, readonly([]*types.Mount{test.in})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestWithRootReadsOverlay needs root and overlay.
func TestWithRootReadsOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	leak.Check(t)
	dir := t.TempDir()
	for path, text := range map[string]string{"lower/etc/passwd": "low", "lower/etc/group": "low", "upper/etc/group": "up", "work/x": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	overlay := []*types.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + dir + "/work", "upperdir=" + dir + "/upper", "lowerdir=" + dir + "/lower",
	}}}
	err := withRoot(overlay, func(root *spec.Root) error {
		for name, want := range map[string]string{"/etc/passwd": "low", "/etc/group": "up"} {
			if data, err := root.ReadFile(name, 10); err != nil || string(data) != want {
				t.Errorf("%s: %q, %v", name, data, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWithRootWithoutMounts(t *testing.T) {
	err := withRoot(nil, func(root *spec.Root) error {
		_, _, err := spec.LookupUser(root, "0")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
