// Package oci owns the command line of an OCI runtime, such as runc or crun:
// which arguments a call has, how its failure is read, and that it ends in time.
// It knows nothing of who calls it, and keeps no state: the runtime does, below
// its root directory.
//
// A call runs in a process group of its own, which is killed when the call's
// context ends. What it prints is kept in a memory file of fixed size, so that
// a runtime gone wild can't fill anything. The runtime's log (--log) goes to a
// file beside the bundle; it is removed after a call that succeeded and kept as
// runtime.log after one that failed.
package oci
