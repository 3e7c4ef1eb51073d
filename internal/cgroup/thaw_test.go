package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// TestThaw compares what is written in either version, and does without a file.
func TestThaw(t *testing.T) {
	for file, want := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		dir := t.TempDir()
		g := Group{Unified: dir}
		if file == "freezer.state" {
			g = Group{Controllers: map[string]string{"freezer": dir}}
		}
		if err := g.Thaw(); err != nil {
			t.Errorf("%s is not there: %v", file, err)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := g.Thaw(); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	if err := (Group{Controllers: map[string]string{"pids": "/nowhere"}}).Thaw(); err != nil {
		t.Error(err)
	}
}
