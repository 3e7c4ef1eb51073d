package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLoadAndExpand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.toml")
	text := "name = \"x\"\ncommand = [\"{bin}\", \"--root\", \"{root}\"]\nconfig_template = \"s={socket}\"\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := d.Expanded(map[string]string{"bin": "/b", "root": "/r", "socket": "/s"})
	if e.Command[0] != "/b" || e.Command[2] != "/r" || e.ConfigTemplate != "s=/s" || e.Snapshotter != "overlayfs" {
		t.Errorf("expanded to %+v", e)
	}
	if d.Command[0] != "{bin}" {
		t.Error("Expanded changed its receiver")
	}
}

func TestLoadRejectsUnknownKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.toml")
	if err := os.WriteFile(path, []byte("name='x'\ncommand=['y']\nfoo=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, nil); err == nil {
		t.Error("no error")
	}
}

func TestConfigForVersion(t *testing.T) {
	for version, want := range map[string]string{
		"containerd github.com/containerd/containerd 1.6.20~ds1 x": "old",
		"containerd github.com/containerd/containerd v2.3.4 abc":   "new",
		"11.2": "new",
	} {
		path := filepath.Join(t.TempDir(), "d.toml")
		text := "name='x'\ncommand=['y']\nversion_command=['echo','{v}']\nconfig_template='new'\n" +
			"[[config_for]]\nversion='1.'\nconfig_template='old'\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := Load(path, map[string]string{"v": version})
		if err != nil || d.ConfigTemplate != want {
			t.Errorf("%s: %+v, %v", version, d, err)
		}
		if _, err := Load(path, map[string]string{"v": "none"}); err == nil {
			t.Error("no version is no error")
		}
	}
}
