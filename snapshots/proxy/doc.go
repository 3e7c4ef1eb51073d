// Package proxy owns the client of snapshotters outside of the daemon: programs
// that serve containerd.services.snapshots.v1.Snapshots on a unix socket. It
// does not choose their keys, nor keep any record of them: that is package
// metadata's.
//
// Nothing here waits for a program longer than it was told to: a program that
// is not there fails a call at once, one that hangs fails it after its deadline,
// and one that comes back is used by the next call.
package proxy
