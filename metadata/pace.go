package metadata

import (
	"runtime"
	"time"
)

// maxHold is how long a collection keeps a processor to itself. The scheduler of
// Go would take it away after 10 ms, which on a machine of few processors is how
// long a call that could go on would have to wait for one.
const maxHold = 200 * time.Microsecond

// pace has long work give way to others. The zero value does.
type pace struct {
	since time.Time
	steps uint8
	hurry bool // somebody waits for this very work
}

// step is called for each small piece of work.
func (p *pace) step() {
	if p.steps++; p.steps%8 != 0 || p.hurry {
		return
	}
	if now := time.Now(); now.Sub(p.since) > maxHold {
		runtime.Gosched()
		p.since = time.Now()
	}
}
