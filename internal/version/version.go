// Package version owns what a program of berth says about its own build. It
// knows only what the Go toolchain stamped into the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Info describes a build.
type Info struct {
	Version  string // module version, such as "v0.1.0"; "devel" when there is none
	Revision string // commit; empty when built outside a checkout
	Modified bool   // the checkout had changes that are not in the commit
	Go       string // such as "go1.26.0"
}

// Build tells the build of the running program.
func Build() Info {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return Info{Version: "devel", Go: runtime.Version()}
	}
	return from(b)
}

func from(b *debug.BuildInfo) Info {
	info := Info{Version: b.Main.Version, Go: b.GoVersion}
	if info.Version == "" || info.Version == "(devel)" {
		info.Version = "devel"
	}
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Revision = s.Value
		case "vcs.modified":
			info.Modified = s.Value == "true"
		}
	}
	return info
}

// Line is what program --version prints.
func (i Info) Line(program string) string {
	revision := i.Revision
	if revision == "" {
		revision = "unknown"
	}
	if i.Modified && !strings.HasSuffix(i.Version, "+dirty") {
		revision += " (modified)"
	}
	return fmt.Sprintf("%s %s, revision %s, %s", program, i.Version, revision, i.Go)
}

// API is the version that the wire's Version service answers: the level of
// containerd's API that berth speaks. Clients require semver of at least 2.0.0
// and choose what they call by it; berth's own version is String.
const API = "2.3.4"

// String is berth's own version, such as "v0.1.0".
func String() string { return Build().Version }

// Revision is the commit the running program was built from; empty when built
// outside a checkout.
func Revision() string { return Build().Revision }
