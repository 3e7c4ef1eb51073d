//go:build !faults

package fault

// Enabled tells whether this build has fault points.
const Enabled = false

// Before is called right before the step named point takes effect.
func Before(point string) error { return nil }

// After is called right after the step named point took effect.
func After(point string) error { return nil }
