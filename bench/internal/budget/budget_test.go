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
		{Budget{"m", "shim", "shim anon", 2441, false}, 0, "pass    m: 2100 KiB, at most 2441\n"},
		{Budget{"m", "shim", "shim anon", 2000, false}, 1, "FAIL    m: 2100 KiB, at most 2000\n"},
		{Budget{"m", "lifecycle", "total", 1.5, true}, 0, "pass    m: 1.3 times the limit, at most 1.5\n"},
		{Budget{"m", "lifecycle", "total", 1.25, true}, 1, "FAIL    m: 1.3 times the limit, at most 1.25\n"},
		{Budget{"m", "lifecycle", "none", 1, false}, 1, "FAIL    m: no figure \"none\" in lifecycle (ok)\n"},
		{Budget{"m", "lifecycle", "alone", 1, true}, 1, "FAIL    m: no limit of \"alone\" in lifecycle: run with -limit\n"},
		{Budget{"m", "static", "x", 1, false}, 0, "not run m: scenario static\n"},
	} {
		var out strings.Builder
		if n := Check(&out, sample(), "A", []Budget{c.b}); n != c.exceeded || out.String() != c.want {
			t.Errorf("%+v: %d, %q, want %q", c.b, n, out.String(), c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	for text, ok := range map[string]bool{
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\nmax=1.5\ntimes_limit=true\n": true,
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\n":                            false,
		"[[budget]]\nname='a'\nscenario='s'\nmetric='m'\nmax=1\nmaximum=2\n":          false,
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
