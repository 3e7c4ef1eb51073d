package scenario

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"
)

func staticScenario() *Scenario {
	return &Scenario{
		Name:   "static",
		Title:  "Sizes of the binaries, start of the daemon, memory when idle",
		Rounds: func(p *Params) int { return p.StaticStarts },
		Round:  func(ctx context.Context, r *Run, round int) error { return r.static(ctx, round) },
	}
}

func (r *Run) static(ctx context.Context, round int) error {
	if round == 0 {
		if err := r.binarySizes(); err != nil {
			return err
		}
	}
	if err := r.D.Stop(); err != nil {
		return err
	}
	took, err := r.D.Start(ctx)
	if err != nil {
		return err
	}
	r.addMs("start to Version, existing root", took)
	time.Sleep(r.P.IdleBeforeMeasures)
	m, err := procfs.ReadMemory(r.D.Pid())
	if err != nil {
		return err
	}
	r.add("idle Rss", "KiB", report.Lower, float64(m.Rss))
	r.add("idle Pss", "KiB", report.Lower, float64(m.Pss))
	r.add("idle anon", "KiB", report.Lower, float64(m.Anon))
	r.add("idle threads", "count", report.Lower, float64(procfs.Threads(r.D.Pid())))
	helpers := r.D.Helpers(nil)
	r.add("idle helper processes", "count", report.Lower, float64(len(helpers)))

	if err := r.D.Stop(); err != nil {
		return err
	}
	if err := r.D.Wipe(); err != nil {
		return err
	}
	if took, err = r.D.Start(ctx); err != nil {
		return err
	}
	r.addMs("start to Version, empty root", took)
	return nil
}

// binarySizes measures the files the description names, each and together, and
// says which carry symbols.
func (r *Run) binarySizes() error {
	var sum int64
	var parts []string
	for _, name := range r.D.Config.Binaries {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		sum += st.Size()
		r.add("binary "+filepath.Base(path), "MB", report.Lower, float64(st.Size())/1e6)
		kind := "stripped"
		if f, err := elf.Open(path); err == nil {
			if f.Section(".symtab") != nil {
				kind = "with symbols"
			}
			f.Close()
		}
		parts = append(parts, fmt.Sprintf("%s %d bytes (%s)", filepath.Base(path), st.Size(), kind))
	}
	r.add("binaries", "MB", report.Lower, float64(sum)/1e6)
	r.note("binaries: %s", strings.Join(parts, ", "))
	return nil
}
