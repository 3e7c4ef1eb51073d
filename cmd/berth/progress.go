package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/client"
)

// progress shows how far an import or a transfer is: as bars on a terminal,
// elsewhere as a line for each thing done.
type progress struct {
	out  io.Writer     // for lines; nil: nothing is shown
	bars *mpb.Progress // nil: lines

	// mu guards what follows.
	mu      sync.Mutex
	objects map[string]*object
}

// step is how far an object is.
type step struct {
	key           string // tells objects apart: a digest
	status        string
	offset, total int64
}

// object is what is shown of one object.
type object struct {
	bar *mpb.Bar
	// status is read by mpb from goroutines of its own, on which update waits:
	// so no mutex.
	status atomic.Pointer[string]
}

// done are the statuses that end something, of which there is a line.
var done = map[string]bool{
	"loaded": true, "unpacked": true, // of an import
	"complete": true, "already exists": true, "extracted": true, "exported": true, // of a transfer
	"converted": true,
}

// newProgress decides by standard error, where progress belongs: standard output
// is for what was made.
func (a *app) newProgress(quiet bool) *progress {
	p := &progress{objects: map[string]*object{}}
	if quiet || a.json() {
		return p
	}
	p.out = a.err
	if f, ok := a.err.(*os.File); ok && client.IsTerminal(f) {
		p.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
	}
	return p
}

// imported shows a message of an import.
func (p *progress) imported(m *images.Progress) {
	p.update(step{m.GetDigest(), m.GetStatus(), m.GetOffset(), m.GetTotal()})
}

// transferred shows a message of a transfer. What is not about a blob is not shown.
func (p *progress) transferred(m *transfer.Progress) {
	kind, id, _ := strings.Cut(m.GetName(), "-")
	if kind == "layer" || kind == "config" || kind == "blob" {
		p.update(step{id, m.GetEvent(), m.GetProgress(), m.GetTotal()})
	}
}

// update shows how far an object is.
func (p *progress) update(s step) {
	if p.out == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.objects[s.key]
	if o == nil {
		o = &object{}
		p.objects[s.key] = o
	}
	before := o.status.Swap(&s.status)
	if p.bars == nil {
		if (before == nil || *before != s.status) && done[s.status] {
			fmt.Fprintf(p.out, "%s %s\n", s.status, s.key)
		}
		return
	}
	if o.bar == nil {
		o.bar = p.bars.AddBar(s.total,
			mpb.PrependDecorators(
				decor.Name(shortDigest(s.key), decor.WCSyncSpaceR),
				decor.Any(func(decor.Statistics) string { return *o.status.Load() }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
				return humanSize(s.Current) + " / " + humanSize(s.Total)
			})))
	}
	if s.total > 0 {
		o.bar.SetTotal(s.total, false)
	}
	o.bar.SetCurrent(s.offset)
}

// end takes the bars to their end, or leaves them where they are.
func (p *progress) end(whole bool) {
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
		if whole {
			bar.SetTotal(-1, true)
		} else {
			bar.Abort(false)
		}
	}
	p.bars.Wait()
}
