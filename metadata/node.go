package metadata

import (
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berthd/berth/internal/labels"
)

// kind is what collection calls a kind of rows.
type kind uint8

const (
	kindContainer kind = iota + 1
	kindImage
	kindLease
	kindIngest
	kindMount
	kindSnapshot
	kindContent
)

// node is a row as collection sees it: key is that of its table, so that of a
// snapshot starts with its snapshotter.
type node struct {
	kind kind
	ns   string
	key  string
}

var nodeBuckets = [...]string{
	kindContainer: containerTable.bucket, kindImage: imageTable.bucket, kindLease: leaseTable.bucket,
	kindIngest: ingestTable.bucket, kindMount: activationTable.bucket, kindSnapshot: snapshotTable.bucket, kindContent: blobTable.bucket,
}

func snapshotNode(ns, snapshotter, key string) node {
	return node{kindSnapshot, ns, path(snapshotter, key)}
}

// heldNode is what an entry of a lease stands for.
func heldNode(ns, resource, id string) (node, bool) {
	switch resource {
	case resourceContent:
		return node{kindContent, ns, id}, true
	case resourceIngests:
		return node{kindIngest, ns, id}, true
	case resourceImages:
		return node{kindImage, ns, id}, true
	case resourceMounts:
		return node{kindMount, ns, id}, true
	}
	if snapshotter, ok := strings.CutPrefix(resource, resourceSnapshots); ok {
		return snapshotNode(ns, snapshotter, id), true
	}
	return node{}, false
}

// facts are what collection has to know of a row.
type facts struct {
	root    bool      // a label makes it one
	expires time.Time // its own end: zero if it has none, or none that can be read
	usedAt  time.Time
	flat    bool   // a lease that doesn't follow labels
	fixed   []node // what it refers to by its nature
	labeled []node // what its labels refer to
	back    []node // what keeps it alive, by its labels
	conds   []condition
}

// condition keeps a snapshot that was used not longer than age ago.
type condition struct {
	snapshot node
	age      time.Duration
}

// Numbers of the fields that collection reads. It reads them from the stored
// bytes: to decode whole messages, specs and all, would take many times as
// long.
const (
	containerLabels      = 2
	containerSnapshotter = 6
	containerSnapshotKey = 7
	imageLabels          = 2
	imageTarget          = 3
	descriptorDigest     = 2
	leaseLabels          = 3
	blobLabels           = 5
	snapshotInfo         = 1
	infoParent           = 2
	infoLabels           = 6
	ingestStatus         = 1
	ingestExpires        = 3
	statusExpected       = 6
	mountInfo            = 1
	mountTemporary       = 3
	activationLabels     = 4
	timestampSeconds     = 1
	mapKey, mapValue     = 1, 2
)

// look reads what collection has to know from a row's bytes.
func look(n node, value []byte) (facts, error) {
	var f facts
	err := f.read(n, value)
	if err != nil {
		return f, fmt.Errorf("%s row %q of namespace %q can't be read: %w: %w", nodeBuckets[n.kind], named(n.key), n.ns, err, errdefs.ErrDataLoss)
	}
	return f, nil
}

func (f *facts) read(n node, value []byte) error {
	switch n.kind {
	case kindContainer:
		var snapshotter, key string
		err := eachField(value, func(number protowire.Number, v []byte) error {
			switch number {
			case containerLabels:
				return f.label(n, v)
			case containerSnapshotter:
				snapshotter = string(v)
			case containerSnapshotKey:
				key = string(v)
			}
			return nil
		})
		if snapshotter != "" && key != "" {
			f.fixed = append(f.fixed, snapshotNode(n.ns, snapshotter, key))
		}
		return err
	case kindImage:
		return eachField(value, func(number protowire.Number, v []byte) error {
			switch number {
			case imageLabels:
				return f.label(n, v)
			case imageTarget:
				return f.reference(n.ns, v, descriptorDigest)
			}
			return nil
		})
	case kindLease:
		return eachField(value, f.labels(n, leaseLabels))
	case kindContent:
		return eachField(value, f.labels(n, blobLabels))
	case kindIngest:
		return f.readIngest(n, value)
	case kindMount:
		return f.readMount(n, value)
	default:
		return f.readSnapshot(n, value)
	}
}

func (f *facts) readIngest(n node, value []byte) error {
	return eachField(value, func(number protowire.Number, v []byte) error {
		switch number {
		case ingestStatus:
			return f.reference(n.ns, v, statusExpected)
		case ingestExpires:
			return eachVarint(v, func(number protowire.Number, v uint64) {
				if number == timestampSeconds {
					f.expires = time.Unix(int64(v), 0)
				}
			})
		}
		return nil
	})
}

// readMount reads an activation. It is a root unless it says what it lives with.
func (f *facts) readMount(n node, value []byte) error {
	temporary := false
	err := eachField(value, func(number protowire.Number, v []byte) error {
		if number != mountInfo {
			return nil
		}
		return eachField(v, f.labels(n, activationLabels))
	})
	if err == nil {
		err = eachVarint(value, func(number protowire.Number, v uint64) {
			temporary = temporary || number == mountTemporary && v != 0
		})
	}
	f.root = !temporary && len(f.back) == 0
	return err
}

func (f *facts) readSnapshot(n node, value []byte) error {
	snapshotter, _, _ := cut(n.key)
	return eachField(value, func(number protowire.Number, v []byte) error {
		if number != snapshotInfo {
			return nil
		}
		return eachField(v, func(number protowire.Number, v []byte) error {
			switch number {
			case infoParent:
				if len(v) > 0 {
					f.fixed = append(f.fixed, snapshotNode(n.ns, snapshotter, string(v)))
				}
			case infoLabels:
				return f.label(n, v)
			}
			return nil
		})
	})
}

// reference takes the digest in a field of a message.
func (f *facts) reference(ns string, message []byte, field protowire.Number) error {
	return eachField(message, func(number protowire.Number, v []byte) error {
		if number == field && len(v) > 0 {
			f.fixed = append(f.fixed, node{kindContent, ns, string(v)})
		}
		return nil
	})
}

// labels reads the labels of a message that has nothing else to read.
func (f *facts) labels(n node, field protowire.Number) func(protowire.Number, []byte) error {
	return func(number protowire.Number, v []byte) error {
		if number != field {
			return nil
		}
		return f.label(n, v)
	}
}

// label reads one entry of a label map.
func (f *facts) label(n node, entry []byte) error {
	var key, value []byte
	err := eachField(entry, func(number protowire.Number, v []byte) error {
		switch number {
		case mapKey:
			key = v
		case mapValue:
			value = v
		}
		return nil
	})
	if err == nil && strings.HasPrefix(string(key), labels.GC) {
		f.steer(n, string(key), string(value))
	}
	return err
}

// eachField gives the fields of a message that hold bytes, text or messages.
func eachField(message []byte, visit func(protowire.Number, []byte) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
				return protowire.ParseError(n)
			}
			message = message[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := visit(number, v); err != nil {
			return err
		}
	}
	return nil
}

// eachVarint gives the fields of a message that hold numbers.
func eachVarint(message []byte, visit func(protowire.Number, uint64)) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(message)
			visit(number, v)
		}
		message = message[n:]
	}
	return nil
}
