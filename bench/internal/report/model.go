// Package report collects samples per scenario and metric, and renders them as
// JSON, Markdown and plain text.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/berthd/berth/bench/internal/stats"
)

// Limit is the series name of the baseline that runs without any daemon.
const Limit = "limit"

// Other is the series name of the daemon that the first one, "A", is compared to.
const Other = "B"

// Direction says which way a metric improves.
type Direction string

// Directions of a metric.
const (
	Lower  Direction = "lower"
	Higher Direction = "higher"
	Info   Direction = "info"
)

// Report is everything one run of the benchmark produced.
type Report struct {
	mu        sync.Mutex
	Started   time.Time   `json:"started"`
	Finished  time.Time   `json:"finished"`
	Quick     bool        `json:"quick"`
	Host      Host        `json:"host"`
	Targets   []TargetRef `json:"targets"`
	Scenarios []*Scenario `json:"scenarios"`
}

// Host describes the machine the run was made on.
type Host struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	MemMiB int64  `json:"mem_mib"`
	Cgroup string `json:"cgroup"`
	FS     string `json:"fs"`
}

// TargetRef names one of the compared daemons.
type TargetRef struct {
	Label   string `json:"label"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Scenario holds the outcome of one scenario.
type Scenario struct {
	mu      sync.Mutex
	Name    string            `json:"name"`
	Title   string            `json:"title"`
	Seconds float64           `json:"seconds"`
	Status  map[string]string `json:"status"`
	Metrics []*Metric         `json:"metrics"`
	Notes   []string          `json:"notes,omitempty"`
	Load    float64           `json:"load1_at_start"`
	// Unserved holds, by series, the metrics of what the daemon does not serve.
	Unserved map[string][]string `json:"unserved,omitempty"`
}

// Metric is one measured quantity, with one series per target.
type Metric struct {
	Name    string             `json:"name"`
	Unit    string             `json:"unit"`
	Better  Direction          `json:"better"`
	Series  map[string]*Series `json:"series"`
	AB      *stats.Ratio       `json:"ratio_a_b,omitempty"`
	ALimit  *stats.Ratio       `json:"ratio_a_limit,omitempty"`
	BLimit  *stats.Ratio       `json:"ratio_b_limit,omitempty"`
	limitOf string
}

// Series is the samples of one target, in the order they were taken.
type Series struct {
	Summary stats.Summary `json:"summary"`
	Samples []float64     `json:"samples"`
}

// AddScenario appends a scenario to the report.
func (r *Report) AddScenario(name, title string, load float64) *Scenario {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Scenario{Name: name, Title: title, Status: map[string]string{}, Load: load}
	r.Scenarios = append(r.Scenarios, s)
	return s
}

// Scenario finds a scenario by its name; nil if it did not run.
func (r *Report) Scenario(name string) *Scenario {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.Scenarios {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Metric finds a metric by its name; nil if nothing was measured.
func (s *Scenario) Metric(name string) *Metric {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.Metrics {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// SetNotServed notes that the daemon of a series does not serve what a metric is
// about.
func (s *Scenario) SetNotServed(series, metric string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.Unserved[series], metric) {
		return
	}
	if s.Unserved == nil {
		s.Unserved = map[string][]string{}
	}
	s.Unserved[series] = append(s.Unserved[series], metric)
	s.Notes = append(s.Notes, fmt.Sprintf("%s: %s: not served", series, metric))
}

// NotServed tells what SetNotServed has noted.
func (s *Scenario) NotServed(series, metric string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.Unserved[series], metric)
}

// Add records one sample of a metric for a series ("A", "B" or Limit).
func (s *Scenario) Add(series, metric, unit string, better Direction, value float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.metric(metric)
	if m.Unit == "" {
		m.Unit, m.Better = unit, better
	}
	sr := m.Series[series]
	if sr == nil {
		sr = &Series{}
		m.Series[series] = sr
	}
	sr.Samples = append(sr.Samples, value)
}

// ShareLimit makes metric use the limit samples of another metric.
func (s *Scenario) ShareLimit(metric, from string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metric(metric).limitOf = from
}

func (s *Scenario) metric(name string) *Metric {
	for _, m := range s.Metrics {
		if m.Name == name {
			return m
		}
	}
	m := &Metric{Name: name, Series: map[string]*Series{}}
	s.Metrics = append(s.Metrics, m)
	return m
}

// Note adds a line of text once.
func (s *Scenario) Note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.Notes {
		if n == text {
			return
		}
	}
	s.Notes = append(s.Notes, text)
}

// SetStatus records how a scenario ended for a series.
func (s *Scenario) SetStatus(series, status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Status[series] = status
}

// Finish computes summaries and ratios.
func (s *Scenario) Finish(elapsed time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Seconds = elapsed.Seconds()
	for _, m := range s.Metrics {
		if m.limitOf != "" {
			if src := s.metric(m.limitOf).Series[Limit]; src != nil {
				m.Series[Limit] = &Series{Samples: src.Samples}
			}
		}
	}
	for _, m := range s.Metrics {
		for _, sr := range m.Series {
			sr.Summary = stats.Summarise(sr.Samples)
		}
		m.AB = m.ratio("A", "B")
		m.ALimit = m.ratio("A", Limit)
		m.BLimit = m.ratio("B", Limit)
	}
}

func (m *Metric) ratio(a, b string) *stats.Ratio {
	sa, sb := m.Series[a], m.Series[b]
	if sa == nil || sb == nil {
		return nil
	}
	r, ok := stats.MedianRatio(sa.Samples, sb.Samples)
	if !ok {
		return nil
	}
	return &r
}

// WriteJSON writes the report with its raw samples.
func (r *Report) WriteJSON(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
