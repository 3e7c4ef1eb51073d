package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const description = `{"cdiVersion": "0.6.0", "kind": "vendor.test/null",
"devices": [
 {"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/null", "permissions": "rw"}], "env": ["ONE=1"]}},
 {"name": "broken", "containerEdits": {"deviceNodes": [{"path": "/dev/broken", "hostPath": "/nowhere"}]}}],
"containerEdits": {"mounts": [{"hostPath": "/etc/hostname", "containerPath": "/vendor", "options": ["ro", "rbind"]}]}}`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(description), 0o600); err != nil {
		t.Fatal(err)
	}
	inject := func(names ...string) (*specs.Spec, error) {
		s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		return s, Inject(s, []string{dir, filepath.Join(dir, "missing")}, names)
	}
	s, err := inject("vendor.test/null=one")
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/one" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices %+v", d)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 1 || !rules[0].Allow || rules[0].Access != "rw" || *rules[0].Minor != 3 {
		t.Errorf("rules %+v", rules)
	}
	if !slices.Contains(s.Process.Env, "ONE=1") || len(s.Mounts) != 1 || s.Mounts[0].Destination != "/vendor" {
		t.Errorf("environment %q, mounts %+v", s.Process.Env, s.Mounts)
	}
	if s, err := inject("vendor.test/null=one", "vendor.test/null=two"); !errdefs.IsNotFound(err) || len(s.Linux.Devices) > 0 ||
		!strings.Contains(err.Error(), "vendor.test/null=two: no description") || !strings.Contains(err.Error(), "there are vendor.test/null=broken, vendor.test/null=one") {
		t.Errorf("a device that is not there: %v", err)
	}
	if _, err := inject("vendor.test/null=broken"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a device that the host lacks: %v", err)
	}
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := inject("vendor.test/null=two"); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("beside a broken description: %v", err)
	}
	if s, err := inject(); err != nil || len(s.Mounts) > 0 {
		t.Errorf("no device: %v", err)
	}
}

func TestParseGPUs(t *testing.T) {
	for text, want := range map[string]string{
		"all": "nvidia.com/gpu=all", "2": "nvidia.com/gpu=0 nvidia.com/gpu=1", "device=0,GPU-1a": "nvidia.com/gpu=0 nvidia.com/gpu=GPU-1a",
		`"device=1"`: "nvidia.com/gpu=1", "": "", "0": "", "-2": "", "device=": "", "count=1": "", "device=a b": "", "all,capabilities=utility": "",
	} {
		got, err := ParseGPUs(text)
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestIsDevice(t *testing.T) {
	for text, want := range map[string]bool{"vendor.com/class=name": true, "/dev/null": false, "/dev/a=b:/dev/c": false, "vendor=x": false, "": false} {
		if IsDevice(text) != want {
			t.Errorf("%q: %t", text, !want)
		}
	}
}
