package version

import (
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
