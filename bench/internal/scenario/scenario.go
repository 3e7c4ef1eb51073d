// Package scenario holds the measurements. Every scenario runs against each
// daemon in interleaved rounds and, where there is one, against a limit that
// does the same work without a daemon.
package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/bench/internal/config"
	"github.com/berthd/berth/bench/internal/daemon"
	"github.com/berthd/berth/bench/internal/ociimage"
	"github.com/berthd/berth/bench/internal/report"
)

// Scenario is one measurement. Nil functions are skipped. Setup and Teardown
// are not timed; Round is called Rounds times per daemon, with the daemons
// taking turns.
type Scenario struct {
	Name     string
	Title    string
	Rounds   func(p *Params) int
	Prepare  func(ctx context.Context, e *Env) error // once, before any daemon starts
	Setup    func(ctx context.Context, r *Run) error
	Round    func(ctx context.Context, r *Run, round int) error
	Teardown func(ctx context.Context, r *Run) error

	LimitSetup    func(ctx context.Context, r *Run) error
	LimitRound    func(ctx context.Context, r *Run, round int) error
	LimitTeardown func(ctx context.Context, r *Run) error
	// LimitPartial says that the limit does only part of a round's work, so that
	// its processor time is not comparable.
	LimitPartial bool
	// Shares maps a metric to the metric whose limit it uses as well.
	Shares map[string]string
}

// Run is one scenario against one daemon, or against the limit, where D is nil.
type Run struct {
	*Env
	D     *daemon.Daemon
	S     *report.Scenario
	Label string
	// State is whatever the scenario's functions hand each other.
	State any
	seq   int
}

// Env is what all scenarios share.
type Env struct {
	P       *Params
	WorkDir string
	Payload *ociimage.Image
	// Rootfs is the payload's root file system in a plain directory.
	Rootfs string
	// OCIRuntime drives the limit.
	OCIRuntime string
	Configs    map[string]*config.Daemon
	Vars       map[string]string
	// Dead holds the daemons that did not start at all, with the reason.
	Dead map[string]string

	large    map[ociimage.Compression]*ociimage.Image
	registry *registryServer
}

func (r *Run) add(metric, unit string, better report.Direction, value float64) {
	r.S.Add(r.Label, metric, unit, better, value)
}

// addMs records a duration in milliseconds.
func (r *Run) addMs(metric string, d time.Duration) {
	r.add(metric, "ms", report.Lower, float64(d.Nanoseconds())/1e6)
}

// addRate records a number of operations per second.
func (r *Run) addRate(metric string, n int, d time.Duration) {
	r.add(metric, "ops/s", report.Higher, float64(n)/d.Seconds())
}

// addMBs records a throughput in 10^6 bytes per second.
func (r *Run) addMBs(metric string, bytes int64, d time.Duration) {
	r.add(metric, "MB/s", report.Higher, float64(bytes)/1e6/d.Seconds())
}

func (r *Run) note(format string, args ...any) {
	r.S.Note(r.Label + ": " + fmt.Sprintf(format, args...))
}

// id makes a name that is unique within the scenario.
func (r *Run) id(prefix string) string {
	r.seq++
	return fmt.Sprintf("%s-%s-%d", prefix, r.Label, r.seq)
}

// All lists the scenarios in the order they run.
func All() []*Scenario {
	return []*Scenario{
		staticScenario(),
		lifecycleScenario(),
		parallelScenario(),
		execScenario(),
		shimScenario(),
		podScenario(),
		manyExecsScenario(),
		flushesScenario(),
		densityScenario(),
		restartScenario(),
		importScenario(),
		pullScenario(),
		contentScenario(),
		metadataScenario(),
		eventsScenario(),
		stdioScenario(),
		gcScenario(),
	}
}

func once(*Params) int { return 1 }
