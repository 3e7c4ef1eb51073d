package version

import (
	"fmt"
	"runtime/debug"
	"testing"
)

func TestLine(t *testing.T) {
	for _, c := range []struct {
		name  string
		build debug.BuildInfo
		want  string
	}{
		{"test binary", debug.BuildInfo{GoVersion: "go1.26.0"}, "berthd devel, revision unknown, go1.26.0"},
		{"devel", debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}}, "berthd devel, revision unknown, go1.26.0"},
		{"stamped", debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "v0.1.0"}, Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"},
		}}, "berthd v0.1.0, revision abc, go1.26.0"},
		{"modified", debug.BuildInfo{GoVersion: "go1.26.0", Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"},
		}}, "berthd devel, revision abc (modified), go1.26.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := from(&c.build).Line("berthd"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestAPIMeetsClients(t *testing.T) {
	var major, minor, patch int
	if n, err := fmt.Sscanf(API, "%d.%d.%d", &major, &minor, &patch); n != 3 || err != nil || major < 2 {
		t.Errorf("API %q: clients want semver of at least 2.0.0", API)
	}
	if String() == "" {
		t.Error("no version")
	}
}
