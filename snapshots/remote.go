package snapshots

import "context"

// Remote is a snapshotter that is not part of the daemon. It keeps names,
// parents and labels itself; package metadata makes its keys, which are one set
// for all namespaces. Calls may take long, and none may be taken for done when
// it fails: Unavailable means that nobody knows.
type Remote interface {
	// In gives it for calls on behalf of a namespace; "" is nobody's.
	In(namespace string) Snapshotter
	// Cleanup has it remove now what it put off. Unimplemented: it never does.
	Cleanup(ctx context.Context) error
	// Capabilities are those that introspection reports, such as "remap-ids".
	Capabilities() []string
}
