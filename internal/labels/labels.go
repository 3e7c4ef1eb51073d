// Package labels owns the rules for labels and the names of those that have a
// meaning. It does not act on them: metadata collects, clients read defaults.
package labels

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
)

// MaxSize is how many bytes the key and the value of one label may have
// together.
const MaxSize = 4096

// Prefixes of labels that clients must not invent.
const (
	Reserved    = "containerd.io/"
	ReservedCRI = "io.cri-containerd"
)

// Labels that steer collection. A name that ends in a dot is the start of a
// family. Values of ...Ref labels name what the labelled object keeps alive;
// those of ...BackRef labels name what keeps the labelled object alive.
const (
	GC     = "containerd.io/gc."     // start of all of them
	GCRoot = "containerd.io/gc.root" // prefix: content or a snapshot is a root, whatever the value

	GCRef         = "containerd.io/gc.ref."
	GCRefContent  = "containerd.io/gc.ref.content"   // alone, or with ".X" or "/X"; value: digest
	GCRefImage    = "containerd.io/gc.ref.image"     // alone, or with ".X" or "/X"; value: image name
	GCRefSnapshot = "containerd.io/gc.ref.snapshot." // + SNAPSHOTTER[/X]; value: key
	GCRefMount    = "containerd.io/gc.ref.mount"     // alone, or with ".X" or "/X"; value: activation
	GCRefStream   = "containerd.io/gc.ref.stream"    // alone, or with ".X" or "/X"; value: stream

	GCBackRef          = "containerd.io/gc.bref."
	GCBackRefContainer = "containerd.io/gc.bref.container" // alone, or with ".X" or "/X"
	GCBackRefContent   = "containerd.io/gc.bref.content"   // alone, or with ".X" or "/X"
	GCBackRefImage     = "containerd.io/gc.bref.image"     // alone, or with ".X" or "/X"
	GCBackRefSnapshot  = "containerd.io/gc.bref.snapshot." // + SNAPSHOTTER[/X]

	GCExpire = "containerd.io/gc.expire" // RFC 3339: a lease or an image ends then
	GCFlat   = "containerd.io/gc.flat"   // on a lease: labels of what it holds are not followed

	GCCondSnapshot = "containerd.io/gc.cond.snapshot."    // + SNAPSHOTTER; value: usedat<DURATION|KEY
	GCUsedAt       = "containerd.io/gc.cond.value-usedat" // RFC 3339, on the snapshot a condition names
)

// Labels that pullers put on content, for the collector to follow.
const (
	GCRefConfig   = "containerd.io/gc.ref.content.config"           // manifest to config
	GCRefLayer    = "containerd.io/gc.ref.content.l."               // + N: manifest to layer
	GCRefManifest = "containerd.io/gc.ref.content.m."               // + N: index to manifest
	GCRefReferrer = "containerd.io/gc.ref.content.referrer.sha256." // + 12 hex digits
	GCRefOther    = "containerd.io/gc.ref.content."                 // + N: any other child
)

// Import marks a lease of the daemon's own, which ends with an import or with
// the daemon.
const Import = "io.berth.import"

// Pull marks a lease of the daemon's own that keeps what a pull has fetched, also
// when the way to the registry fails; its value is the name of the image.
const Pull = "io.berth.pull"

// Labels of content.
const (
	Uncompressed       = "containerd.io/uncompressed"         // digest of the uncompressed layer, its diff id
	DistributionSource = "containerd.io/distribution.source." // + HOST; value: repositories, sorted, by comma
)

// Labels of snapshots.
const (
	SnapshotRef       = "containerd.io/snapshot.ref"              // name under which the target will be committed
	SnapshotInherited = "containerd.io/snapshot/"                 // prefix: passed on to the driver
	SnapshotUIDs      = "containerd.io/snapshot/uidmapping"       // CONTAINER:HOST:SIZE[,...]
	SnapshotGIDs      = "containerd.io/snapshot/gidmapping"       // CONTAINER:HOST:SIZE[,...]
	SnapshotUpperDir  = "containerd.io/snapshot/overlay.upperdir" // set by overlay if so configured
	SnapshotParent    = "containerd.io/snapshot/parent-chain-id"  // set by the unpacker
	SnapshotDiffID    = "containerd.io/snapshot/diff-id"          // set by the unpacker
)

// Labels of namespaces.
const (
	NamespaceShareable = "containerd.io/namespace.shareable"  // "true": others may take its content
	DefaultRuntime     = "containerd.io/defaults/runtime"     // read by clients
	DefaultSnapshotter = "containerd.io/defaults/snapshotter" // read by clients
	DefaultSandboxer   = "containerd.io/defaults/sandboxer"   // read by clients
)

// Labels of containers, for the restart monitor.
const (
	RestartStatus  = "containerd.io/restart.status"             // wanted: running or stopped
	RestartPolicy  = "containerd.io/restart.policy"             // no, always, unless-stopped, on-failure[:N]
	RestartCount   = "containerd.io/restart.count"              // restarts so far
	RestartLogURI  = "containerd.io/restart.loguri"             // stdio of the next start
	RestartStopped = "containerd.io/restart.explicitly-stopped" // "true": the user stopped it
)

// ValidateOne checks the size of one label. The error is of kind
// InvalidArgument.
func ValidateOne(key, value string) error {
	if len(key)+len(value) <= MaxSize {
		return nil
	}
	const shown = 64
	if len(key) > shown {
		key = key[:shown] + "..."
	}
	return fmt.Errorf("label %q: key and value have together more than %d bytes: %w", key, MaxSize, errdefs.ErrInvalidArgument)
}

// Validate checks all labels of an object, in the order of their keys so that
// the error is always the same one.
func Validate(labels map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if err := ValidateOne(key, labels[key]); err != nil {
			return err
		}
	}
	return nil
}
