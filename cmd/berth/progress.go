package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/client"
)

// progress shows how far an import is: as bars on a terminal, elsewhere as a
// line for each thing done.
type progress struct {
	app  *app
	bars *mpb.Progress // nil: lines

	// mu guards what follows.
	mu      sync.Mutex
	objects map[string]*object
}

// object is what is shown of one object of an import.
type object struct {
	bar *mpb.Bar
	// status is read by mpb from goroutines of its own, on which update waits:
	// so no mutex.
	status atomic.Pointer[string]
}

// Statuses that end a step.
const (
	statusLoaded   = "loaded"
	statusUnpacked = "unpacked"
)

// newProgress decides by standard error, where progress belongs: standard output
// is for what was made.
func (a *app) newProgress() *progress {
	p := &progress{app: a, objects: map[string]*object{}}
	if f, ok := a.err.(*os.File); ok && client.IsTerminal(f) && !a.json() {
		p.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
	}
	return p
}

// update shows a message of progress.
func (p *progress) update(m *images.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.objects[m.GetDigest()]
	if o == nil {
		o = &object{}
		p.objects[m.GetDigest()] = o
	}
	status := m.GetStatus()
	before := o.status.Swap(&status)
	if p.bars == nil {
		changed := before == nil || *before != status
		if changed && (status == statusLoaded || status == statusUnpacked) && !p.app.json() {
			fmt.Fprintf(p.app.err, "%s %s\n", status, m.GetDigest())
		}
		return
	}
	if o.bar == nil {
		o.bar = p.bars.AddBar(m.GetTotal(),
			mpb.PrependDecorators(
				decor.Name(shortDigest(m.GetDigest()), decor.WCSyncSpaceR),
				decor.Any(func(decor.Statistics) string { return *o.status.Load() }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
				return humanSize(s.Current) + " / " + humanSize(s.Total)
			})))
	}
	if total := m.GetTotal(); total > 0 {
		o.bar.SetTotal(total, false)
	}
	o.bar.SetCurrent(m.GetOffset())
}

// end takes the bars to their end, or leaves them where they are.
func (p *progress) end(done bool) {
	if p.bars == nil {
		return
	}
	p.mu.Lock()
	var all []*mpb.Bar
	for _, o := range p.objects {
		all = append(all, o.bar)
	}
	p.mu.Unlock()
	for _, bar := range all {
		if done {
			bar.SetTotal(-1, true)
		} else {
			bar.Abort(false)
		}
	}
	p.bars.Wait()
}
