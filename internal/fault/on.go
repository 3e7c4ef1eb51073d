//go:build faults

package fault

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Enabled tells whether this build has fault points.
const Enabled = true

// ErrInjected is what an armed point returns, wrapped with the point's name.
var ErrInjected = errors.New("injected fault")

// Fate is what happens at an armed point.
type Fate string

const (
	FailBefore  Fate = "fail-before"  // the step does not happen; its caller gets ErrInjected
	FailAfter   Fate = "fail-after"   // the step happens; its caller gets ErrInjected
	CrashBefore Fate = "crash-before" // the process kills itself instead of the step
	CrashAfter  Fate = "crash-after"  // the process kills itself after the step
)

var state = struct {
	// mu guards both maps.
	mu    sync.Mutex
	armed map[string]Fate
	seen  map[string]int
}{armed: fromEnvironment(os.Getenv("BERTH_FAULTS")), seen: map[string]int{}}

// fromEnvironment reads "point=fate,point=fate". What it can't read it ends the
// process for: a crash test must not silently test nothing.
func fromEnvironment(text string) map[string]Fate {
	armed := map[string]Fate{}
	for _, part := range strings.Split(text, ",") {
		if part == "" {
			continue
		}
		point, fate, ok := strings.Cut(part, "=")
		switch Fate(fate) {
		case FailBefore, FailAfter, CrashBefore, CrashAfter:
		default:
			ok = false
		}
		if !ok {
			fmt.Fprintf(os.Stderr, "BERTH_FAULTS: %q is not point=fate\n", part)
			os.Exit(2)
		}
		armed[point] = Fate(fate)
	}
	return armed
}

// Set arms point until the returned function is called.
func Set(point string, fate Fate) (disarm func()) {
	state.mu.Lock()
	defer state.mu.Unlock()
	state.armed[point] = fate
	return func() {
		state.mu.Lock()
		defer state.mu.Unlock()
		delete(state.armed, point)
	}
}

// Seen lists, sorted, every point that was passed since the start or the last
// Reset. A test takes from it which points an operation has.
func Seen() []string {
	state.mu.Lock()
	defer state.mu.Unlock()
	points := make([]string, 0, len(state.seen))
	for point := range state.seen {
		points = append(points, point)
	}
	sort.Strings(points)
	return points
}

// Reset disarms every point and forgets which were seen.
func Reset() {
	state.mu.Lock()
	defer state.mu.Unlock()
	clear(state.armed)
	clear(state.seen)
}

// Before is called right before the step named point takes effect.
func Before(point string) error {
	state.mu.Lock()
	state.seen[point]++
	fate := state.armed[point]
	state.mu.Unlock()
	return act(point, fate, FailBefore, CrashBefore)
}

// After is called right after the step named point took effect.
func After(point string) error {
	state.mu.Lock()
	fate := state.armed[point]
	state.mu.Unlock()
	return act(point, fate, FailAfter, CrashAfter)
}

func act(point string, fate, fail, crash Fate) error {
	switch fate {
	case fail:
		return fmt.Errorf("%s: %s: %w", point, fate, ErrInjected)
	case crash:
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	}
	return nil
}
