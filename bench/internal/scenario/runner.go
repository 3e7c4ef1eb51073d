package scenario

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/bench/internal/daemon"
	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"golang.org/x/sys/unix"
)

const statusOK = "ok"

// hangGrace is how long a function may ignore the end of its context.
const hangGrace = 15 * time.Second

// Execute runs one scenario against fresh daemons and the limit. Failures of
// one daemon end up in its status and do not touch the others.
func Execute(ctx context.Context, e *Env, s *Scenario, labels []string, withLimit bool, rep *report.Report) *report.Scenario {
	begin := time.Now()
	out := rep.AddScenario(s.Name, s.Title, procfs.LoadAverage())
	x := &execution{env: e, s: s, out: out}
	x.run(ctx, labels, withLimit)
	for metric, from := range s.Shares {
		out.ShareLimit(metric, from)
	}
	out.Finish(time.Since(begin))
	return out
}

type execution struct {
	env  *Env
	s    *Scenario
	out  *report.Scenario
	runs []*Run // those that have not failed
}

func (x *execution) run(ctx context.Context, labels []string, withLimit bool) {
	if x.s.Prepare != nil {
		if err := guard(ctx, 2*x.env.P.Timeout, func(ctx context.Context) error { return x.s.Prepare(ctx, x.env) }); err != nil {
			for _, l := range labels {
				x.out.SetStatus(l, "SKIPPED: prepare: "+oneLine(err))
			}
			return
		}
	}
	var all []*Run
	for _, l := range labels {
		if why := x.env.Dead[l]; why != "" {
			x.out.SetStatus(l, "FAILED: start: "+why)
			continue
		}
		r := &Run{Env: x.env, S: x.out, Label: l}
		if err := x.startDaemon(ctx, r); err != nil {
			x.out.SetStatus(l, "FAILED: start: "+oneLine(err))
			if r.D != nil {
				x.destroy(r)
			}
			continue
		}
		all = append(all, r)
	}
	if withLimit && x.s.LimitRound != nil {
		all = append(all, &Run{Env: x.env, S: x.out, Label: report.Limit})
	}
	x.runs = slices.Clone(all)
	x.each("setup", x.runs, func(r *Run) func(context.Context) error {
		if r.D == nil {
			return bind(x.s.LimitSetup, r)
		}
		return bind(x.s.Setup, r)
	}, ctx)
	x.rounds(ctx)
	x.each("teardown", x.runs, func(r *Run) func(context.Context) error {
		if r.D == nil {
			return bind(x.s.LimitTeardown, r)
		}
		return bind(x.s.Teardown, r)
	}, ctx)
	for _, r := range x.runs {
		x.out.SetStatus(r.Label, statusOK)
	}
	for _, r := range all {
		x.destroy(r)
	}
}

// rounds lets the runs take turns; every other round goes backwards so that no
// one always comes first.
func (x *execution) rounds(ctx context.Context) {
	for round := range x.s.Rounds(x.env.P) {
		turn := slices.Clone(x.runs)
		if round%2 == 1 {
			slices.Reverse(turn)
		}
		x.each(fmt.Sprintf("round %d", round), turn, func(r *Run) func(context.Context) error {
			f := x.s.Round
			if r.D == nil {
				f = x.s.LimitRound
			}
			return func(ctx context.Context) error {
				// Nobody pays for pages that another run has dirtied.
				unix.Sync()
				begin, ok := r.cpuTime()
				if err := f(ctx, r, round); err != nil {
					return err
				}
				if r.D == nil && x.s.LimitPartial {
					return nil
				}
				if end, stillOK := r.cpuTime(); ok && stillOK {
					r.addMs("processor time of a round", end-begin)
				}
				return nil
			}
		}, ctx)
	}
}

// cpuTime is the processor time of the daemon with its helpers and containers;
// for the limit that of the benchmark and its finished children.
func (r *Run) cpuTime() (time.Duration, bool) {
	if r.D != nil {
		return r.D.CPUTime()
	}
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, false
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, true
}

func bind(f func(context.Context, *Run) error, r *Run) func(context.Context) error {
	if f == nil {
		return nil
	}
	return func(ctx context.Context) error { return f(ctx, r) }
}

// each calls a function for every run and drops those that fail.
func (x *execution) each(step string, runs []*Run, pick func(*Run) func(context.Context) error, ctx context.Context) {
	// A copy, because failed runs are taken out of x.runs on the way.
	for _, r := range slices.Clone(runs) {
		f := pick(r)
		if f == nil {
			continue
		}
		if err := guard(ctx, x.env.P.Timeout, f); err != nil {
			x.out.SetStatus(r.Label, "FAILED: "+step+": "+oneLine(err))
			if r.D != nil {
				if tail := r.D.LogTail(400); tail != "" {
					r.note("end of the daemon's log: %s", tail)
				}
			}
			x.runs = slices.DeleteFunc(x.runs, func(o *Run) bool { return o == r })
		}
	}
}

func (x *execution) startDaemon(ctx context.Context, r *Run) error {
	base := filepath.Join(x.env.WorkDir, "d")
	log := filepath.Join(x.env.WorkDir, "logs", x.s.Name+"-"+r.Label+".log")
	d, err := daemon.New(r.Label, x.env.Configs[r.Label], base, log, x.env.Vars)
	if err != nil {
		return err
	}
	r.D = d
	return guard(ctx, x.env.P.StartTimeout, func(ctx context.Context) error {
		_, err := d.Start(ctx)
		return err
	})
}

func (x *execution) destroy(r *Run) {
	if r.D == nil {
		daemon.RemoveLimit(filepath.Join(x.env.WorkDir, "limit"), report.Limit)
		return
	}
	if err := r.D.Destroy(); err != nil {
		r.note("clean-up: %s", oneLine(err))
	}
}

// guard bounds a function in time and turns a panic into an error. A function
// that ignores its context is abandoned.
func guard(parent context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v %s", p, debug.Stack())
			}
		}()
		done <- f(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		if err == nil {
			err = ctx.Err()
		}
		return err
	case <-time.After(hangGrace):
		return errors.New("hangs: " + ctx.Err().Error())
	}
}

func oneLine(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > 500 {
		s = s[:500] + "…"
	}
	return s
}

// Version starts a daemon once and asks for its version. A daemon that fails
// here is not tried again.
func Version(ctx context.Context, e *Env, label string) (string, error) {
	x := &execution{env: e, s: &Scenario{Name: "version"}, out: &report.Scenario{Status: map[string]string{}}}
	r := &Run{Env: e, S: x.out, Label: label}
	if err := x.startDaemon(ctx, r); err != nil {
		if r.D != nil {
			x.destroy(r)
		}
		if e.Dead == nil {
			e.Dead = map[string]string{}
		}
		e.Dead[label] = oneLine(err)
		return "", err
	}
	defer x.destroy(r)
	v, err := r.D.Client.Version(ctx)
	return v.Version, err
}
