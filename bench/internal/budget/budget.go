// Package budget holds a report to golden numbers: what a daemon may take at
// most or give at least, by the median of a metric, or by its ratio to the limit
// or to the other daemon.
package budget

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/bench/internal/report"
)

// Budget is one golden number.
type Budget struct {
	Name     string  `toml:"name"`     // for people
	Scenario string  `toml:"scenario"` // where it is measured
	Metric   string  `toml:"metric"`   // what is measured there
	Max      float64 `toml:"max"`      // in the metric's unit; 0 is none
	Min      float64 `toml:"min"`      // at least so much, instead of Max
	// TimesLimit makes Max or Min a multiple of the limit: of the sum of its medians of
	// these metrics of the scenario.
	TimesLimit []string `toml:"times_limit"`
	// TimesOther makes Max or Min a multiple of the other daemon's median of the same
	// metric, where there is another.
	TimesOther bool `toml:"times_other"`
}

// Load reads a file of budgets.
func Load(path string) ([]Budget, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Budgets []Budget `toml:"budget"`
	}
	if err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i, b := range file.Budgets {
		if b.Name == "" || b.Scenario == "" || b.Metric == "" || b.Max < 0 || b.Min < 0 || (b.Max > 0) == (b.Min > 0) {
			return nil, fmt.Errorf("%s: budget %d %q: name, scenario, metric and either max or min are required", path, i+1, b.Name)
		}
	}
	if len(file.Budgets) == 0 {
		return nil, fmt.Errorf("%s: no budgets", path)
	}
	return file.Budgets, nil
}

// Check prints one line per budget for the daemon of that label, and tells how
// many are exceeded. One whose scenario did not run is named and passed over;
// one whose scenario ran but gave no figure counts as exceeded.
func Check(out io.Writer, rep *report.Report, label string, budgets []Budget) (exceeded int) {
	for _, b := range budgets {
		verdict, detail := b.check(rep, label)
		if verdict == failed {
			exceeded++
		}
		fmt.Fprintf(out, "%-7s %s: %s\n", verdict, b.Name, detail)
	}
	return exceeded
}

const (
	passed = "pass"
	failed = "FAIL"
	notRun = "not run"
)

func (b Budget) check(rep *report.Report, label string) (verdict, detail string) {
	s := rep.Scenario(b.Scenario)
	if s == nil {
		return notRun, "scenario " + b.Scenario
	}
	m := s.Metric(b.Metric)
	if s.NotServed(label, b.Metric) {
		return notRun, "this daemon does not serve it"
	}
	if m == nil || m.Series[label] == nil {
		return failed, fmt.Sprintf("no figure %q in %s (%s)", b.Metric, b.Scenario, s.Status[label])
	}
	value := m.Series[label].Summary.Median
	unit := m.Unit
	switch {
	case len(b.TimesLimit) > 0:
		limit, missing := limitOf(s, b.TimesLimit)
		if missing != "" {
			return failed, fmt.Sprintf("no limit of %q in %s: run with -limit", missing, b.Scenario)
		}
		value /= limit
		unit = "times the limit"
	case b.TimesOther:
		other := m.Series[report.Other]
		if other == nil || other.Summary.Median == 0 {
			return notRun, "no other daemon beside it"
		}
		value /= other.Summary.Median
		unit = "times the other daemon's"
	}
	verdict = passed
	if b.Min > 0 {
		if value < b.Min {
			verdict = failed
		}
		return verdict, fmt.Sprintf("%s %s, at least %s", number(value), unit, number(b.Min))
	}
	if value > b.Max {
		verdict = failed
	}
	return verdict, fmt.Sprintf("%s %s, at most %s", number(value), unit, number(b.Max))
}

// limitOf adds up the limit's medians of some metrics, or names one that has
// none.
func limitOf(s *report.Scenario, metrics []string) (sum float64, missing string) {
	for _, name := range metrics {
		m := s.Metric(name)
		if m == nil || m.Series[report.Limit] == nil || m.Series[report.Limit].Summary.Median == 0 {
			return 0, name
		}
		sum += m.Series[report.Limit].Summary.Median
	}
	return sum, ""
}

// number writes a figure with at most two decimals.
func number(v float64) string {
	return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64)
}
