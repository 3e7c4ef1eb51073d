// Package shim owns the processes of a container while they run: their standard
// streams, their exit statuses, and the calls of the task API about them. It
// runs in a process of its own (cmd/berth-shim), so that the daemon can stop,
// crash or be replaced. It does not make containers; an OCI runtime does
// (runtime/oci). It does not know images, snapshots or the daemon's database.
//
// # How an exit is never lost
//
// The OCI runtime makes a container's process as its own child, writes its pid
// and leaves. The shim is a subreaper, so the process becomes the shim's child.
// Until its parent waits, a dead process is a zombie and keeps pid and status:
// the zombie is the durable record of an early exit. So nothing has to be
// caught in time. The shim opens a pidfd for the pid it was told and waits for
// that pid alone; there is no wait4(-1) that could take the status of a process
// which somebody else, such as the code that runs the OCI runtime, waits for.
// Orphans that nobody knows are swept only while no call of the runtime is
// under way (sweep.go).
//
// When a process has ended, in this order (exit.go):
//
//	a Start of it that is under way ends, and its event is queued
//	init only: every other process is ended, and its exit has gone through all of this
//	what it wrote is passed on, for at most settleTime
//	what the OOM killer did is counted, and its event queued (oom.go)
//	the exit record is renamed into the bundle, and only then is it reaped
//	Wait answers, and the exit event is queued
//
// # Who may do what at the same time
//
// Calls that change a task (Create, Start, Pause, Resume, Update, Delete) go
// through the container's lane, one at a time. Kill, State, Pids, Wait and
// everything about execs don't: a runtime that hangs in one of the former must
// not keep anybody from killing. A mutex per container guards its fields; it is
// never held across a call of the runtime, a mount or a write to disk.
//
// What is allowed when is a table (state.go), from which docs/states.md is made.
package shim
