// Package fault owns the named points at which a durable step can be made to
// fail or the process to die. Without the build tag "faults" every point is an
// empty function that the compiler removes; with it, tests and the crash
// harness arm points by name (Set, or the environment variable BERTH_FAULTS).
//
// Each step has two fates: it fails before it took effect, or it took effect
// and the caller is told that it failed. Code that is right under both is right
// under a crash at that step.
package fault
