package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestReadOnly(t *testing.T) {
	overlay := func(options ...string) Mount { return Mount{Type: "overlay", Source: "overlay", Options: options} }
	for name, c := range map[string]struct{ in, want Mount }{
		"bind":        {Mount{Type: "bind", Source: "/a", Options: []string{"rw", "rbind"}}, Mount{Type: "bind", Source: "/a", Options: []string{"rbind", "ro"}}},
		"upper":       {overlay("workdir=/w", "upperdir=/u", "lowerdir=/l1:/l2"), overlay("lowerdir=/u:/l1:/l2", "ro")},
		"view":        {overlay("lowerdir=/l1:/l2", "ro"), overlay("lowerdir=/l1:/l2", "ro")},
		"colon":       {overlay("upperdir=/u:1", "lowerdir=/l"), overlay(`lowerdir=/u\:1:/l`, "ro")},
		"escaped":     {overlay(`upperdir=/u\:1`, "lowerdir=/l"), overlay(`lowerdir=/u\:1:/l`, "ro")},
		"writing":     {overlay("upperdir=/u", "lowerdir=/l", "index=on", "nfs_export=on", "volatile"), overlay("lowerdir=/u:/l", "ro")},
		"harmless":    {overlay("upperdir=/u", "lowerdir=/l", "index=off", "userxattr"), overlay("lowerdir=/u:/l", "index=off", "userxattr", "ro")},
		"mapped":      {overlay("uidmap=0:1:2", "gidmap=0:1:2", "upperdir=/u", "lowerdir=/l"), overlay("lowerdir=/u:/l", "ro")},
		"mapped view": {overlay("uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/l:/m"), overlay("uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/l:/m", "ro")},
	} {
		before := append([]string(nil), c.in.Options...)
		if diff := cmp.Diff([]Mount{c.want}, ReadOnly([]Mount{c.in})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(before, c.in.Options); diff != "" {
			t.Errorf("%s: what was given is changed:\n%s", name, diff)
		}
	}
}

// TestReadOnlyInUse mounts what is mounted, with a colon in its name.
func TestReadOnlyInUse(t *testing.T) {
	dir := scratch(t)
	lower, upper := mkdir(t, dir, "lower"), mkdir(t, dir, "up:per")
	work, merged, second := mkdir(t, dir, "work"), mkdir(t, dir, "merged"), mkdir(t, dir, "second")
	write(t, filepath.Join(lower, "below"), "below")
	m := Mount{Type: "overlay", Source: "overlay", Options: []string{"workdir=" + work, "upperdir=" + upper, "lowerdir=" + lower}}
	tryMount(t, m, merged)
	write(t, filepath.Join(merged, "above"), "above")
	if err := All(ReadOnly([]Mount{m}), second); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, second)
	read(t, filepath.Join(second, "below"), "below")
	read(t, filepath.Join(second, "above"), "above")
	if err := os.WriteFile(filepath.Join(second, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("written: %v", err)
	}
}
