// Package gc owns the decision when to collect: soon after something was
// deleted, when a lease, image or ingest ends by itself, once at the start, and
// at once when a client waits for it. What is garbage, and how it goes, is
// package metadata's.
//
// Deletes come in swarms, so a run waits until they pause, and runs take no
// more than a small share of the time. A client that waits is not held up by
// either: its run starts as soon as the current one has ended.
package gc
