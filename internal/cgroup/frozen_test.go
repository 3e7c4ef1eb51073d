package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFrozen reads what the kernel says in either version.
func TestFrozen(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, file, text string
		group            Group
		want             bool
	}{
		{"v2 frozen", "cgroup.freeze", "1\n", Group{Unified: dir}, true},
		{"v2", "cgroup.freeze", "0\n", Group{Unified: dir}, false},
		{"v1 frozen", "freezer.self_freezing", "1\n", Group{Controllers: map[string]string{"freezer": dir}}, true},
		{"v1", "freezer.self_freezing", "0\n", Group{Controllers: map[string]string{"freezer": dir}}, false},
		{"gone", "x", "", Group{Unified: filepath.Join(dir, "gone")}, false},
		{"without freezer", "x", "", Group{}, false},
	} {
		write(c.file, c.text)
		if got, err := c.group.Frozen(); got != c.want || err != nil {
			t.Errorf("%s: %t, %v", c.name, got, err)
		}
	}
}
