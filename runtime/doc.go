// Package runtime owns the daemon's side of shims: bundles, starting a shim and
// talking to it, the table of tasks, and adopting the tasks of an earlier
// daemon. It owns no container rows (package metadata) and no processes of
// containers (package shim).
//
// A task is what its bundle says. Bundle, records and exit status are files
// (package record) that outlive the daemon; the table in memory is a view of
// them. Processes follow the law "intent, act, outcome": a bundle renamed into
// place is the intent, the shim acts, its init.json is the outcome. So a crash
// leaves at most an intent to resolve.
//
// Unknown is not dead. A task is given up only on proof: its shim's socket
// refuses and its processes, known by pid and start time, are gone. All else is
// kept, retried in the background and reported.
package runtime
