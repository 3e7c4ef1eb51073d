package obs

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics counts what the daemon does. A nil *Metrics counts nothing, so that
// a daemon that serves no metrics holds none.
type Metrics struct {
	registry    *prometheus.Registry
	calls       *prometheus.CounterVec
	callSeconds *prometheus.HistogramVec
	gcSeconds   prometheus.Histogram
	gcStall     prometheus.Gauge
	gcRemoved   *prometheus.CounterVec
}

// NewMetrics registers every metric of docs/operations.md. tasks tells how many
// tasks there are of each verdict; it is asked at each scrape.
func NewMetrics(tasks func() map[string]int) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_calls_total", Help: "Calls of the API that ended, by method and status code.",
		}, []string{"method", "code"}),
		callSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_call_seconds", Help: "Time that calls of the API took, without those that wait or stream.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"method"}),
		gcSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_gc_seconds", Help: "Time that collections took.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 30},
		}),
		gcStall: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_gc_stall_seconds", Help: "Longest time that the last collection kept a writer waiting.",
		}),
		gcRemoved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_gc_removed_total", Help: "Objects that collections removed, by kind.",
		}, []string{"kind"}),
	}
	m.registry.MustRegister(m.calls, m.callSeconds, m.gcSeconds, m.gcStall, m.gcRemoved, &taskCollector{tasks},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Call counts a call that ended with a status code. Streams are counted but not
// timed: how long one lasts says nothing of the daemon.
func (m *Metrics) Call(method, code string, stream bool, took time.Duration) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(method, code).Inc()
	if !stream {
		m.callSeconds.WithLabelValues(method).Observe(took.Seconds())
	}
}

// Collection counts a garbage collection with what it removed of each kind.
func (m *Metrics) Collection(took, stall time.Duration, removed map[string]int64) {
	if m == nil {
		return
	}
	m.gcSeconds.Observe(took.Seconds())
	m.gcStall.Set(stall.Seconds())
	for kind, n := range removed {
		m.gcRemoved.WithLabelValues(kind).Add(float64(n))
	}
}

// Handler serves the metrics in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

var tasksDesc = prometheus.NewDesc("berth_tasks", "Tasks under supervision, by verdict.", []string{"verdict"}, nil)

// taskCollector asks for the number of tasks at each scrape.
type taskCollector struct{ count func() map[string]int }

func (c *taskCollector) Describe(ch chan<- *prometheus.Desc) { ch <- tasksDesc }

func (c *taskCollector) Collect(ch chan<- prometheus.Metric) {
	for verdict, n := range c.count() {
		ch <- prometheus.MustNewConstMetric(tasksDesc, prometheus.GaugeValue, float64(n), verdict)
	}
}
