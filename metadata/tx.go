package metadata

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/containers/v1"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/metadata/rows"
)

// Buckets that are no Table.
const (
	schemaBucket     = "schema"
	namespacesBucket = "namespaces"
	heldBucket       = "held"
	childrenBucket   = "children"
)

var (
	containerTable  = Table[*containers.Container]{"containers", "container", kindContainer, func() *containers.Container { return &containers.Container{} }}
	sandboxTable    = Table[*types.Sandbox]{"sandboxes", "sandbox", 0, func() *types.Sandbox { return &types.Sandbox{} }}
	imageTable      = Table[*images.Image]{"images", "image", kindImage, func() *images.Image { return &images.Image{} }}
	leaseTable      = Table[*leases.Lease]{"leases", "lease", kindLease, func() *leases.Lease { return &leases.Lease{} }}
	blobTable       = Table[*contentapi.Info]{"blobs", "content", kindContent, func() *contentapi.Info { return &contentapi.Info{} }}
	ingestTable     = Table[*rows.Ingest]{"ingests", "ingest", kindIngest, func() *rows.Ingest { return &rows.Ingest{} }}
	activationTable = Table[*rows.Activation]{"mounts", "activation", kindMount, func() *rows.Activation { return &rows.Activation{} }}
	snapshotTable   = Table[*rows.Snapshot]{"snapshots", "snapshot", kindSnapshot, func() *rows.Snapshot { return &rows.Snapshot{} }}
)

// buckets are all there are, in the order of doc.go.
var buckets = []string{
	schemaBucket, namespacesBucket, containerTable.bucket, imageTable.bucket, leaseTable.bucket,
	heldBucket, blobTable.bucket, ingestTable.bucket, snapshotTable.bucket, childrenBucket, sandboxTable.bucket, pendingBucket, activationTable.bucket,
}

// Tx is what one function of View or Update sees of the database. It is valid
// until that function returns. In an Update it also collects what has to happen
// once the change is committed.
type Tx struct {
	bolt *bolt.Tx
	now  time.Time

	wrote   bool
	grew    int64 // bytes by which it makes the database larger
	events  []event
	touched []node    // rows written, for the write barrier of a collection
	garbage bool      // something may have lost what kept it alive
	expires time.Time // earliest end of what was written; zero if none ends
	barrier *barrier  // of the collection whose sweep this is; nil otherwise
}

type event struct {
	namespace, topic string
	message          proto.Message
}

// publish has an event published after the commit.
func (tx *Tx) publish(namespace, topic string, message proto.Message) {
	tx.events = append(tx.events, event{namespace, topic, message})
}

// touch tells a running collection that what a row refers to may have changed.
func (tx *Tx) touch(n node) { tx.touched = append(tx.touched, n) }

// endsAt notes that something written ends at t.
func (tx *Tx) endsAt(t time.Time) {
	if !t.IsZero() && (tx.expires.IsZero() || t.Before(tx.expires)) {
		tx.expires = t
	}
}

func (tx *Tx) put(bucket string, key, value []byte) error {
	if len(key) > maxKey {
		return fmt.Errorf("name is longer than %d bytes: %w", maxKey, errdefs.ErrInvalidArgument)
	}
	b := tx.bolt.Bucket([]byte(bucket))
	tx.grew += int64(len(key) + len(value))
	if old := b.Get(key); old != nil {
		tx.grew -= int64(len(key) + len(old))
	}
	tx.wrote = true
	return b.Put(key, value)
}

func (tx *Tx) delete(bucket string, key []byte) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if old := b.Get(key); old != nil {
		tx.grew -= int64(len(key) + len(old))
	}
	tx.wrote = true
	return b.Delete(key)
}

// deletePrefix removes all keys of a bucket that start with prefix.
func (tx *Tx) deletePrefix(bucket, prefix string) error {
	var keys [][]byte
	for key := range tx.scan(bucket, prefix) {
		keys = append(keys, append([]byte(nil), key...))
	}
	for _, key := range keys {
		if err := tx.delete(bucket, key); err != nil {
			return err
		}
	}
	return nil
}

// namespaces lists the names of all that exist, in byte order.
func (tx *Tx) namespaces() []string {
	var names []string
	for key := range tx.scan(namespacesBucket, "") {
		names = append(names, string(key))
	}
	return names
}

func (tx *Tx) namespace(name string) (*namespaces.Namespace, bool, error) {
	ns := &namespaces.Namespace{Name: name}
	value := tx.bolt.Bucket([]byte(namespacesBucket)).Get([]byte(name))
	if value == nil {
		return ns, false, nil
	}
	if err := proto.Unmarshal(value, ns); err != nil {
		return nil, true, fmt.Errorf("namespace %q can't be read: %w: %w", name, err, errdefs.ErrDataLoss)
	}
	return ns, true, nil
}

func (tx *Tx) putNamespace(ns *namespaces.Namespace) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(ns)
	if err != nil {
		return fmt.Errorf("namespace %q: %w: %w", ns.Name, err, errdefs.ErrInvalidArgument)
	}
	return tx.put(namespacesBucket, []byte(ns.Name), value)
}

// makeNamespace makes a namespace that is only used so far.
func (tx *Tx) makeNamespace(name string) error {
	if tx.bolt.Bucket([]byte(namespacesBucket)).Get([]byte(name)) != nil {
		return nil
	}
	return tx.putNamespace(&namespaces.Namespace{Name: name})
}
