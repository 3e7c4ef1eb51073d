package archtest

import (
	"slices"
	"strings"
	"testing"
)

// house is a small module that breaks every kind of rule once.
func house() (graph, []string) {
	own := []string{
		"./api/x", "./events", "./diff", "./metadata", "./runtime", "./shim", "./services", "./client",
		"./internal/names", "./attic", "./cmd/berth-shim", "./snapshots/overlay", "./snapshots",
	}
	g := graph{
		"./cmd/berth-shim":              {"./shim"},
		"./shim":                        {"log", "github.com/containerd/ttrpc", "./internal/names"},
		"github.com/containerd/ttrpc":   {"google.golang.org/grpc/status", "b/deep", "a/long"},
		"a/long":                        {"a/longer"},
		"a/longer":                      {"net/http"},
		"b/deep":                        {"net/http"},
		"google.golang.org/grpc/status": {"google.golang.org/grpc/internal/status"},
		"./internal/names":              {"./events"},
		"./events":                      {"./api/x", "./diff"},
		"./metadata":                    {"go.etcd.io/bbolt"},
		"./runtime":                     {"go.etcd.io/bbolt", "google.golang.org/grpc/codes"},
		"./services":                    {"google.golang.org/grpc", "./metadata", "./snapshots/overlay"},
		"./snapshots/overlay":           {"./snapshots"},
		"./client":                      {"google.golang.org/grpc"},
		"./attic":                       {"log"},
	}
	spelled := graph{}
	for from, to := range g {
		for _, path := range to {
			spelled[full(from)] = append(spelled[full(from)], full(path))
		}
	}
	for i := range own {
		own[i] = full(own[i])
	}
	return spelled, own
}

func TestFindings(t *testing.T) {
	g, own := house()
	for name, c := range map[string]struct {
		check func(graph, []string) []string
		want  []string
	}{
		"floors": {checkFloors, []string{
			"attic is on no floor",
			"this one sideways on floor 2: events → diff",
			"this one up, from floor 1 to 2: internal/names → events",
		}},
		"never": {checkNever, []string{
			"cmd/berth-shim must not reach events: there is a shim for every container",
			"cmd/berth-shim → shim → internal/names → events",
			"shim must not reach events",
		}},
		"only": {checkOnly, []string{
			"go.etcd.io/bbolt is only for ./metadata: one package orders rows against blobs and snapshots\n\truntime → go.etcd.io/bbolt",
			"snapshots/overlay is only for ./cmd/berthd: drivers are chosen where the object graph is built; all else knows the interface\n\tservices → snapshots/overlay",
		}},
	} {
		got := strings.Join(c.check(g, own), "\n")
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", name, want, got)
			}
		}
	}
	// Without the wrong turn the next rule broken is seen, by its shortest way.
	g[full("./internal/names")] = nil
	got := strings.Join(checkNever(g, own), "\n")
	if want := "cmd/berth-shim → shim → github.com/containerd/ttrpc → b/deep → net/http"; !strings.Contains(got, want) {
		t.Errorf("no %q in\n%s", want, got)
	}
	if strings.Contains(got, "grpc") {
		t.Errorf("codes and status are meant to be:\n%s", got)
	}
}

func TestClean(t *testing.T) {
	g := graph{full("./events"): {full("./api/x"), "fmt"}, full("./metadata"): {"go.etcd.io/bbolt", full("./events")}}
	own := []string{full("./events"), full("./metadata"), full("./api/x")}
	for _, check := range []func(graph, []string) []string{checkFloors, checkNever, checkOnly} {
		if report := check(g, own); len(report) > 0 {
			t.Errorf("%q", report)
		}
	}
}

func TestChain(t *testing.T) {
	g := graph{"a": {"b", "c"}, "b": {"d"}, "c": {"e"}, "d": {"e"}, "e": {"a"}}
	to := func(want string) func(string) bool { return func(path string) bool { return path == want } }
	for want, way := range map[string][]string{"e": {"a", "c", "e"}, "d": {"a", "b", "d"}, "a": nil, "z": nil} {
		if got := g.chain("a", to(want), to("none")); !slices.Equal(got, way) {
			t.Errorf("to %s: %v, want %v", want, got, way)
		}
	}
	if got, want := g.chain("a", to("e"), to("c")), []string{"a", "b", "d", "e"}; !slices.Equal(got, want) {
		t.Errorf("around c: %v, want %v", got, want)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"./events", module + "/events", true},
		{"./events", module + "/events/x", false},
		{"./events/...", module + "/events/x", true},
		{"./events/...", module + "/events", true},
		{"./events/...", module + "/eventsx", false},
		{"./...", module + "/a/b", true},
		{"net/http/...", "net/http/internal", true},
		{"net/http", "net/http/internal", false},
	} {
		if got := match(c.pattern, c.path); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.path, got)
		}
	}
	for path, want := range map[string]int{"internal/fault": 0, "internal/mount": 1, "runtime/record": 2, "runtime": 3, "cmd/berthd": 6} {
		if got, ok := floorOf(module + "/" + path); got != want || !ok {
			t.Errorf("%s is on floor %d, %v", path, got, ok)
		}
	}
}
