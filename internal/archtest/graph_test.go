package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// graph is what each package imports, by import path.
type graph map[string][]string

// load asks the go command for the packages of the module and all they import.
// Tests are not part of it. Packages that don't compile are, as far as their
// imports can be read.
func load(t *testing.T, root string) (all graph, own []string) {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports,ImportMap,Module", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	all = graph{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
			ImportMap  map[string]string
			Module     *struct{ Path string }
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for i, path := range pkg.Imports {
			if vendored := pkg.ImportMap[path]; vendored != "" {
				pkg.Imports[i] = vendored
			}
		}
		all[pkg.ImportPath] = pkg.Imports
		if pkg.Module != nil && pkg.Module.Path == module {
			own = append(own, pkg.ImportPath)
		}
	}
	slices.Sort(own)
	return all, own
}

// full gives the import path, or pattern, that a rule's "./x" stands for.
func full(pattern string) string {
	if rest, ok := strings.CutPrefix(pattern, "./"); ok {
		return module + "/" + rest
	}
	return pattern
}

// short is the reverse of full.
func short(path string) string {
	if rest, ok := strings.CutPrefix(path, module+"/"); ok {
		return rest
	}
	return path
}

func match(pattern, path string) bool {
	pattern = full(pattern)
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// chain gives the shortest way from a package to one that is wanted, both
// included, and not through one that is fine; nil if there is none.
func (g graph) chain(from string, wanted, fine func(path string) bool) []string {
	cameFrom := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at != from && wanted(at) {
			var way []string
			for ; at != ""; at = cameFrom[at] {
				way = append(way, at)
			}
			slices.Reverse(way)
			return way
		}
		for _, next := range slices.Sorted(slices.Values(g[at])) {
			if _, seen := cameFrom[next]; !seen && !fine(next) {
				cameFrom[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// show writes a chain as it is read.
func show(chain []string) string {
	var names []string
	for _, path := range chain {
		names = append(names, short(path))
	}
	return strings.Join(names, " → ")
}

// floorOf gives the storey a package is on; the most exact pattern decides. ok
// is false if it is on none.
func floorOf(path string) (floor int, ok bool) {
	best := -1
	for i, patterns := range floors {
		for _, pattern := range patterns {
			if match(pattern, path) && len(pattern) > best {
				floor, best = i, len(pattern)
			}
		}
	}
	return floor, best >= 0
}

// checkFloors reports imports that don't point down.
func checkFloors(g graph, own []string) []string {
	var report []string
	for _, from := range own {
		here, ok := floorOf(from)
		if !ok {
			report = append(report, fmt.Sprintf("%s is on no floor: give it one in rules_test.go", short(from)))
			continue
		}
		for _, to := range g[from] {
			there, ok := floorOf(to)
			switch {
			case !ok || there < here || !slices.Contains(own, to):
			case there > here:
				report = append(report, fmt.Sprintf("imports point down, this one up, from floor %d to %d: %s", here, there, show([]string{from, to})))
			case !meant(from, to):
				report = append(report, fmt.Sprintf("imports point down, this one sideways on floor %d: %s", here, show([]string{from, to})))
			}
		}
	}
	return report
}

func meant(from, to string) bool {
	for _, s := range sideways {
		if match(s.from, from) && match(s.to, to) {
			return true
		}
	}
	return false
}

// checkNever reports packages that reach what they must not.
func checkNever(g graph, own []string) []string {
	var report []string
	for _, rule := range never {
		for _, from := range own {
			if !matchAny(rule.from, from) || matchAny(testOnly, from) {
				continue
			}
			way := g.chain(from, func(path string) bool {
				return matchAny(rule.to, path) && !matchAny(rule.from, path)
			}, func(path string) bool { return matchAny(rule.except, path) })
			if way != nil {
				report = append(report, fmt.Sprintf("%s must not reach %s: %s\n\t%s", short(from), short(way[len(way)-1]), rule.reason, show(way)))
			}
		}
	}
	return report
}

// checkOnly reports packages that import what is reserved to others.
func checkOnly(g graph, own []string) []string {
	var report []string
	for _, rule := range only {
		for _, from := range own {
			if matchAny(testOnly, from) {
				continue
			}
			for _, to := range g[from] {
				if matchAny(rule.what, to) && !matchAny(rule.except, to) && !matchAny(rule.by, from) {
					report = append(report, fmt.Sprintf("%s is only for %s: %s\n\t%s",
						short(to), strings.Join(rule.by, ", "), rule.reason, show([]string{from, to})))
				}
			}
		}
	}
	return report
}

func TestLayers(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	g, own := load(t, root)
	if !slices.Contains(own, module+"/events") || len(g) < 100 {
		t.Fatalf("the graph has %d packages, %d of them own", len(g), len(own))
	}
	for _, check := range []func(graph, []string) []string{checkFloors, checkNever, checkOnly} {
		for _, line := range check(g, own) {
			t.Error(line)
		}
	}
}
