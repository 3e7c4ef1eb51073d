package archtest

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
)

// guaranteesPath is the document whose every promise names its tests.
const guaranteesPath = "docs/guarantees.md"

var (
	namedTest = regexp.MustCompile("`([a-z0-9/_-]+): ((?:Test|Fuzz)[A-Za-z0-9_]+)(?:/([a-z0-9_]+))?`( \\(faults\\))?")
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	faultsTag = regexp.MustCompile(`(?m)^//go:build .*\bfaults\b`)
)

// checkGuarantees reports promises that name no test, and tests that are not
// there, or not in the build that the promise says.
func checkGuarantees(document string, all []source) []string {
	plain, faults, files := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range all {
		files[s.path] = true
		if !s.isTest() {
			continue
		}
		set := plain
		if faultsTag.Match(s.text) {
			set = faults
		}
		for _, m := range testFunc.FindAllSubmatch(s.text, -1) {
			set[path.Dir(s.path)+": "+string(m[1])] = true
		}
	}
	var report []string
	for i, line := range strings.Split(document, "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| promise ") || strings.HasPrefix(line, "| --- ") {
			continue
		}
		named := namedTest.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			report = append(report, fmt.Sprintf("%s:%d: the promise names no test", guaranteesPath, i+1))
		}
		for _, m := range named {
			test, set := m[1]+": "+m[2], plain
			if m[4] != "" {
				set = faults
			}
			if !set[test] {
				report = append(report, fmt.Sprintf("%s:%d: there is no test %q%s", guaranteesPath, i+1, test, m[4]))
			}
			if script := m[1] + "/testdata/script/" + m[3] + ".txtar"; m[3] != "" && !files[script] {
				report = append(report, fmt.Sprintf("%s:%d: there is no script %s", guaranteesPath, i+1, script))
			}
		}
	}
	return report
}

// TestGuarantees holds docs/guarantees.md to the tests that there are.
func TestGuarantees(t *testing.T) {
	all := sources(t)
	for _, s := range all {
		if s.path == guaranteesPath {
			for _, finding := range checkGuarantees(string(s.text), all) {
				t.Error(finding)
			}
			return
		}
	}
	t.Fatalf("there is no %s", guaranteesPath)
}

// TestGuaranteesFindings shows that TestGuarantees can fail.
func TestGuaranteesFindings(t *testing.T) {
	all := []source{
		{path: "p/p_test.go", text: []byte("package p\n\nfunc TestPlain(t *testing.T) {}\n")},
		{path: "p/faults_test.go", text: []byte("//go:build faults\n\npackage p\n\nfunc TestFates(t *testing.T) {}\n")},
		{path: "p/testdata/script/run.txtar"},
	}
	for line, wanted := range map[string]string{
		"| a | `p: TestPlain` |":                           "",
		"| a | `p: TestPlain/run`, `p: TestPlain` |":       "",
		"| a | `p: TestFates` (faults) |":                  "",
		"| a | `p: TestPlain/walk` |":                      "there is no script p/testdata/script/walk.txtar",
		"| a | `p: TestFates` |":                           `there is no test "p: TestFates"`,
		"| a | `p: TestPlain` (faults) |":                  `there is no test "p: TestPlain" (faults)`,
		"| a | `q: TestPlain` |":                           `there is no test "q: TestPlain"`,
		"| a | it is so |":                                 "names no test",
		"| promise | test |":                               "",
		"Text that names `p: TestNothing` in passing only": "",
	} {
		got := strings.Join(checkGuarantees(line, all), "\n")
		if wanted == "" && got != "" || !strings.Contains(got, wanted) {
			t.Errorf("%s: got %q, want %q", line, got, wanted)
		}
	}
}
