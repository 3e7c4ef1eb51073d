package budget

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/bench/internal/report"
)

func sample() *report.Report {
	rep := &report.Report{}
	s := rep.AddScenario("shim", "", 0)
	for _, v := range []float64{2000, 2100, 9000} {
		s.Add("A", "shim anon", "KiB", report.Lower, v)
	}
	s.Finish(time.Second)
	s = rep.AddScenario("lifecycle", "", 0)
	s.Add("A", "total", "ms", report.Lower, 130)
	s.Add(report.Limit, "total", "ms", report.Lower, 100)
	s.Add("B", "total", "ms", report.Lower, 200)
	s.Add(report.Limit, "part", "ms", report.Lower, 30)
	s.Add("A", "alone", "ms", report.Lower, 1)
	s.SetStatus("A", "ok")
	s.Finish(time.Second)
	return rep
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		b        Budget
		exceeded int
		want     string
	}{
		{Budget{Name: "m", Scenario: "shim", Metric: "shim anon", Max: 2441}, 0, "pass    m: 2100 KiB, at most 2441\n"},
		{Budget{Name: "m", Scenario: "shim", Metric: "shim anon", Max: 2000}, 1, "FAIL    m: 2100 KiB, at most 2000\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "total", Max: 1.5, TimesLimit: []string{"total"}}, 0, "pass    m: 1.3 times the limit, at most 1.5\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "total", Max: 1.25, TimesLimit: []string{"total"}}, 1, "FAIL    m: 1.3 times the limit, at most 1.25\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "none", Max: 1}, 1, "FAIL    m: no figure \"none\" in lifecycle (ok)\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "alone", Max: 1, TimesLimit: []string{"alone"}}, 1, "FAIL    m: no limit of \"alone\" in lifecycle: run with -limit\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "total", Max: 1, TimesLimit: []string{"total", "part"}}, 0, "pass    m: 1 times the limit, at most 1\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "total", Max: 0.6, TimesOther: true}, 1, "FAIL    m: 0.65 times the other daemon's, at most 0.6\n"},
		{Budget{Name: "m", Scenario: "lifecycle", Metric: "alone", Max: 1, TimesOther: true}, 0, "not run m: no other daemon beside it\n"},
		{Budget{Name: "m", Scenario: "static", Metric: "x", Max: 1}, 0, "not run m: scenario static\n"},
	} {
		var out strings.Builder
		if n := Check(&out, sample(), "A", []Budget{c.b}); n != c.exceeded || out.String() != c.want {
			t.Errorf("%+v: %d, %q, want %q", c.b, n, out.String(), c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	for text, ok := range map[string]bool{
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\nmax=1.5\ntimes_limit=['m']\ntimes_other=false\n": true,
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\n":                                                false,
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\nmax=1\nmaximum=2\n":                              false,
		"": false,
	} {
		path := filepath.Join(t.TempDir(), "b.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := Load(path); (err == nil) != ok {
			t.Errorf("%q: %v, %v", text, list, err)
		}
	}
	if _, err := Load("../../budgets.toml"); err != nil {
		t.Errorf("the project's own: %v", err)
	}
}
