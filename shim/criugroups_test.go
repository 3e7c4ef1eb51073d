package shim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/runtime/record"
)

// TestGroupPath says where runc puts the containers of a cgroupsPath.
func TestGroupPath(t *testing.T) {
	for _, c := range []struct {
		path    string
		systemd bool
		want    string
	}{
		{"/berth/ns/c", false, "/berth/ns/c"},
		{"/berth//ns/../c/", false, "/berth/c"},
		{"relative", false, ""},
		{"", false, ""},
		{"/with space", false, ""},
		{"/with\nroot /", false, ""},
		{"system.slice:berth:c", true, "/system.slice/berth-c.scope"},
		{":berth:c", true, "/system.slice/berth-c.scope"},
		{"a-b-c.slice::c", true, "/a.slice/a-b.slice/a-b-c.slice/c.scope"},
		{"-.slice:x:c", true, "/x-c.scope"},
		{"kubepods.slice:cri:pod.slice", true, "/kubepods.slice/pod.slice"},
		{"/abs", true, ""},
		{"", true, ""},
	} {
		if got := groupPath(c.path, c.systemd); got != c.want {
			t.Errorf("%q, systemd %v: %q, want %q", c.path, c.systemd, got, c.want)
		}
	}
}

// TestWriteCriu has the settings for criu named in config.json, once, and all else
// in it stay.
func TestWriteCriu(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, criuFile)
	write := func(config string) {
		_ = os.Remove(file)
		if err := os.WriteFile(filepath.Join(dir, record.ConfigFile), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := writeCriu(dir, false); err != nil {
				t.Fatalf("%s: %v", config, err)
			}
		}
	}
	config := func() string {
		data, err := os.ReadFile(filepath.Join(dir, record.ConfigFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}

	write(`{"annotations":{"a":"b"},"linux":{"cgroupsPath":"/x/y","of":"tomorrow"},"new":[1]}`)
	data, err := os.ReadFile(file)
	if err != nil || string(data) != "cgroup-root /x/y\n" {
		t.Errorf("%q, %v", data, err)
	}
	name, _ := json.Marshal(file)
	want := `{"annotations":{"a":"b","org.criu.config":` + string(name) + `},"linux":{"cgroupsPath":"/x/y","of":"tomorrow"},"new":[1]}`
	if got := config(); got != want {
		t.Errorf("config %s, want %s", got, want)
	}
	for _, same := range []string{
		`{"annotations":{"org.criu.config":"/own"},"linux":{"cgroupsPath":"/x/y"}}`,
		`{"linux":{"cgroupsPath":"relative"}}`,
		`{}`,
		`no json`,
	} {
		write(same)
		if got := config(); got != same {
			t.Errorf("%s became %s", same, got)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("settings for %s", same)
		}
	}
}
