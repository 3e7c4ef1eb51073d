package report

import (
	"fmt"
	"math"
	"os"
	"sort"
	"strings"

	"github.com/berthd/berth/bench/internal/stats"
)

// WriteMarkdown writes the whole report as Markdown.
func (r *Report) WriteMarkdown(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark report\n\n")
	fmt.Fprintf(&b, "Started %s, took %.0f s, quick=%v. Kernel %s, %d CPUs, %d MiB, cgroups %s, file system %s.\n\n",
		r.Started.UTC().Format("2006-01-02 15:04:05 UTC"), r.Finished.Sub(r.Started).Seconds(), r.Quick,
		r.Host.Kernel, r.Host.CPUs, r.Host.MemMiB, r.Host.Cgroup, r.Host.FS)
	for _, t := range r.Targets {
		fmt.Fprintf(&b, "- %s = %s (%s)\n", t.Label, t.Name, t.Version)
	}
	fmt.Fprintf(&b, "\nRatios are ratios of medians; brackets hold a bootstrap 95%% interval (5 or more samples on both sides). "+
		"↓ lower is better, ↑ higher is better. The limit runs without any daemon.\n")
	for _, s := range r.Scenarios {
		s.markdown(&b)
	}
	b.WriteString(r.noise())
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func (s *Scenario) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\n%s. Took %.0f s, load average at start %.1f. ", s.Name, s.Title, s.Seconds, s.Load)
	b.WriteString(s.statusLine() + "\n\n")
	if len(s.Metrics) > 0 {
		b.WriteString("| metric | unit | A median | A p90 | A p99 | A min | A n | B median | B p90 | B p99 | B min | B n | limit | A/B | A/limit | B/limit |\n")
		b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	}
	for _, m := range s.Metrics {
		fmt.Fprintf(b, "| %s | %s |", m.Name, m.unitArrow())
		for _, label := range []string{"A", "B"} {
			b.WriteString(cells(m.Series[label]))
		}
		fmt.Fprintf(b, " %s | %s | %s | %s |\n", limitCell(m.Series[Limit]), ratioCell(m.AB), ratioCell(m.ALimit), ratioCell(m.BLimit))
	}
	for _, n := range s.Notes {
		fmt.Fprintf(b, "\n- %s", n)
	}
	if len(s.Notes) > 0 {
		b.WriteString("\n")
	}
}

// Text renders one scenario for the terminal.
func (s *Scenario) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "== %s: %s (%.0f s)\n   %s\n", s.Name, s.Title, s.Seconds, s.statusLine())
	for _, m := range s.Metrics {
		fmt.Fprintf(&b, "   %-34s %-9s", m.Name, m.unitArrow())
		for _, label := range []string{"A", "B"} {
			sr := m.Series[label]
			if sr == nil {
				fmt.Fprintf(&b, " %s -", label)
				continue
			}
			fmt.Fprintf(&b, " %s med %s p90 %s p99 %s min %s n %d;", label, num(sr.Summary.Median), num(sr.Summary.P90),
				num(sr.Summary.P99), num(sr.Summary.Min), sr.Summary.N)
		}
		fmt.Fprintf(&b, " limit %s; A/B %s; A/limit %s\n", limitCell(m.Series[Limit]), ratioCell(m.AB), ratioCell(m.ALimit))
	}
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "   note: %s\n", n)
	}
	return b.String()
}

func (s *Scenario) statusLine() string {
	keys := make([]string, 0, len(s.Status))
	for k := range s.Status {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	parts := make([]string, 0, len(keys))
	for _, k := range keys {
		parts = append(parts, k+": "+s.Status[k])
	}
	return strings.Join(parts, "; ")
}

// noise lists how far A/B is from 1 over all timed metrics. It is what a run
// of one daemon against itself is made for.
func (r *Report) noise() string {
	var dev []float64
	worst, worstName := 0.0, ""
	for _, s := range r.Scenarios {
		for _, m := range s.Metrics {
			if m.AB == nil || m.Better == Info || m.AB.Value <= 0 {
				continue
			}
			d := math.Abs(math.Log(m.AB.Value))
			dev = append(dev, d)
			if d > worst {
				worst, worstName = d, s.Name+" / "+m.Name
			}
		}
	}
	if len(dev) == 0 {
		return ""
	}
	sum := stats.Summarise(dev)
	pct := func(d float64) float64 { return (math.Exp(d) - 1) * 100 }
	return fmt.Sprintf("\n## Spread of A/B\n\nOver %d metrics the distance of A/B from 1 is: median %.1f%%, p90 %.1f%%, largest %.1f%% (%s). "+
		"When A and B are the same daemon this is the noise of the machine.\n", len(dev), pct(sum.Median), pct(sum.P90), pct(worst), worstName)
}

func (m *Metric) unitArrow() string {
	switch m.Better {
	case Lower:
		return m.Unit + " ↓"
	case Higher:
		return m.Unit + " ↑"
	}
	return m.Unit
}

func cells(sr *Series) string {
	if sr == nil {
		return " - | - | - | - | 0 |"
	}
	m := sr.Summary
	return fmt.Sprintf(" %s | %s | %s | %s | %d |", num(m.Median), num(m.P90), num(m.P99), num(m.Min), m.N)
}

func limitCell(sr *Series) string {
	if sr == nil {
		return "-"
	}
	return num(sr.Summary.Median)
}

func ratioCell(r *stats.Ratio) string {
	if r == nil {
		return "-"
	}
	if !r.Interval {
		return fmt.Sprintf("%.2f", r.Value)
	}
	return fmt.Sprintf("%.2f [%.2f..%.2f]", r.Value, r.Lo, r.Hi)
}

func num(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) && a < 1e7:
		return fmt.Sprintf("%.0f", v)
	case a >= 1000:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}
