package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/labels"
)

// Link is a step of the way from a root to an object.
type Link struct {
	Kind        string // "container", "image", "lease", "ingest", "activation", "snapshot", "blob"
	Namespace   string
	Name        string
	Snapshotter string // of a snapshot
	By          string // by what it keeps the next one: "target", "parent", a label...
}

// Chain is the way from a root to an object, which is its last link.
type Chain struct {
	Links   []Link
	Reason  string // what makes the first one a root, or why nothing keeps the object
	Garbage bool   // the next collection removes the object
}

// minPrefix is how much of a name has to be given for it to be looked up.
const minPrefix = 4

// Why tells what keeps an object from collection, for each namespace that has
// it; ns "" means all of them. The object is a digest, the key of a snapshot,
// or the start of either; or another name. It is collection's own mark that is
// asked. NotFound; InvalidArgument: several begin so.
func (db *DB) Why(ctx context.Context, ns, object string) (chains []Chain, err error) {
	err = db.View(func(tx *Tx) error {
		m := newMarker(tx.now, db.ingests.isHeld)
		m.via = map[node]node{}
		if err := m.roots(ctx, tx); err != nil {
			return err
		}
		if err := m.follow(ctx, tx); err != nil {
			return err
		}
		found, err := tx.find(ns, object)
		if err != nil {
			return err
		}
		for _, n := range found {
			chains = append(chains, m.chain(tx, n))
		}
		return nil
	})
	if err == nil && len(chains) == 0 {
		return db.whyNoRow(ctx, object)
	}
	return chains, err
}

// whyNoRow tells of bytes that no row names.
func (db *DB) whyNoRow(ctx context.Context, object string) ([]Chain, error) {
	d := digest.Digest(object)
	if d.Validate() == nil {
		_, err := db.content.Stat(ctx, d)
		if err == nil {
			return []Chain{{Links: []Link{{Kind: "blob", Name: object}}, Reason: "no row names its bytes", Garbage: !db.unnamed.isPinned(d)}}, nil
		}
		if !errors.Is(err, errdefs.ErrNotFound) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("object %q: %w", short(object), errdefs.ErrNotFound)
}

// find gives the rows with a name, or those of the one name that begins so.
func (tx *Tx) find(in, object string) ([]node, error) {
	var exact, begun []node
	names := map[string]bool{}
	for kind := kindContainer; kind <= kindContent; kind++ {
		for key := range tx.scan(nodeBuckets[kind], "") {
			ns, rest, _ := cut(string(key))
			if in != "" && ns != in {
				continue
			}
			name := rest
			if kind == kindSnapshot {
				_, name, _ = cut(rest)
			}
			_, hex, _ := strings.Cut(name, ":")
			switch {
			case name == object:
				exact = append(exact, node{kind, ns, rest})
			case len(object) >= minPrefix && (strings.HasPrefix(name, object) || kind == kindContent && strings.HasPrefix(hex, object)):
				begun = append(begun, node{kind, ns, rest})
				names[name] = true
			}
		}
	}
	if len(exact) > 0 {
		return exact, nil
	}
	if len(names) > 1 {
		return nil, fmt.Errorf("%q is the start of %d names: give more of it: %w", short(object), len(names), errdefs.ErrInvalidArgument)
	}
	return begun, nil
}

// chain gives the way by which a node was marked.
func (m *marker) chain(tx *Tx, n node) Chain {
	if m.marks[n] == unmarked {
		return Chain{Links: []Link{link(n)}, Reason: "nothing keeps it", Garbage: true}
	}
	nodes := []node{n}
	for at, ok := m.via[n]; ok; at, ok = m.via[at] {
		nodes = append(nodes, at)
	}
	slices.Reverse(nodes)
	c := Chain{Reason: m.rootReason(tx, nodes[0])}
	for i, n := range nodes {
		l := link(n)
		if i+1 < len(nodes) {
			l.By = tx.relation(n, nodes[i+1])
		}
		c.Links = append(c.Links, l)
	}
	return c
}

func link(n node) Link {
	l := Link{Kind: kindNames[n.kind], Namespace: n.ns, Name: n.key}
	if n.kind == kindSnapshot {
		l.Snapshotter, l.Name, _ = cut(n.key)
	}
	return l
}

// rootReason says what makes a row a root.
func (m *marker) rootReason(tx *Tx, n node) string {
	f, err := look(n, tx.row(n))
	if err != nil {
		return err.Error()
	}
	switch n.kind {
	case kindContainer:
		return "it is a container"
	case kindImage, kindLease:
		if f.expires.IsZero() {
			return "it does not end by itself"
		}
		return "it ends at " + f.expires.Format(time.RFC3339)
	case kindIngest:
		if m.held(n.ns, n.key) {
			return "it is being written"
		}
		return "it is kept until " + f.expires.Format(time.RFC3339)
	}
	return "its label " + labels.GCRoot
}

// relation says by what one row keeps another.
func (tx *Tx) relation(from, to node) string {
	f, err := look(from, tx.row(from))
	if err != nil {
		return err.Error()
	}
	if slices.Contains(f.fixed, to) {
		switch from.kind {
		case kindContainer:
			return "snapshot"
		case kindImage:
			return "target"
		case kindIngest:
			return "expected"
		}
		return "parent"
	}
	if from.kind == kindLease {
		held := false
		tx.eachHeld(from.ns, from.key, func(resource, id string) {
			n, ok := heldNode(from.ns, resource, id)
			held = held || ok && n == to
		})
		if held {
			return "holds"
		}
	}
	for key, value := range tx.labelsOf(from) {
		if labelNames(from, key, value, to) {
			return "label " + key
		}
	}
	for key, value := range tx.labelsOf(to) {
		if rest, ok := strings.CutPrefix(key, labels.GCBackRef); ok {
			if named, ok := labelTarget(to.ns, rest, value); ok && named == from {
				return "label " + key + " of the other"
			}
		}
	}
	return ""
}

// labelNames tells whether a label of one row refers to another.
func labelNames(from node, key, value string, to node) bool {
	if rest, ok := strings.CutPrefix(key, labels.GCRef); ok {
		named, ok := labelTarget(from.ns, rest, value)
		return ok && named == to
	}
	if rest, ok := strings.CutPrefix(key, labels.GCCondSnapshot); ok {
		snapshotter, _, _ := strings.Cut(rest, "/")
		name, _, ok := parseCondition(value)
		return ok && snapshotNode(from.ns, snapshotter, name) == to
	}
	return false
}

// labelsOf gives the labels of a row; none if it can't be read.
func (tx *Tx) labelsOf(n node) map[string]string {
	switch n.kind {
	case kindContainer:
		row, _ := containerTable.Get(tx, n.ns, n.key)
		return row.GetLabels()
	case kindImage:
		row, _ := imageTable.Get(tx, n.ns, n.key)
		return row.GetLabels()
	case kindLease:
		row, _ := leaseTable.Get(tx, n.ns, n.key)
		return row.GetLabels()
	case kindContent:
		row, _ := blobTable.Get(tx, n.ns, n.key)
		return row.GetLabels()
	case kindMount:
		row, _ := activationTable.Get(tx, n.ns, n.key)
		return row.GetInfo().GetLabels()
	case kindSnapshot:
		row, _ := snapshotTable.Get(tx, n.ns, n.key)
		return row.GetInfo().GetLabels()
	}
	return nil
}
