package metadata

import (
	"strings"

	"github.com/berthd/berth/internal/labels"
)

// references notes what refers to what is gone. By contract such references
// keep nothing alive and are no damage: a client may have fetched one platform
// of an index alone, or removed what a label still names.
func (c *check) references() error {
	return c.db.View(func(tx *Tx) error {
		for kind := kindContainer; kind <= kindContent; kind++ {
			count := 0
			for key, value := range tx.scan(nodeBuckets[kind], "") {
				if count++; count%1024 == 0 && c.ctx.Err() != nil {
					return c.ctx.Err()
				}
				ns, rest, _ := cut(string(key))
				n := node{kind, ns, rest}
				f, err := look(n, value)
				if err != nil {
					continue // reported already
				}
				c.dangling(tx, n, f)
			}
		}
		return nil
	})
}

// dangling notes what one row refers to and is not there.
func (c *check) dangling(tx *Tx, n node, f facts) {
	note := func(format string, args ...any) {
		c.report(kindNames[n.kind], n.ns, named(n.key), format, args...)
		c.found[len(c.found)-1].Note = true
	}
	if n.kind != kindIngest { // which expects what is not there yet
		for _, to := range f.fixed {
			if tx.row(to) == nil && (n.kind != kindSnapshot) {
				note("it refers to %s %q, which is gone", kindNames[to.kind], named(to.key))
			}
		}
	}
	for _, to := range f.labeled {
		if tx.row(to) == nil && !c.mayBeAbsent(tx, n, to) {
			note("a label of it refers to %s %q, which is gone", kindNames[to.kind], named(to.key))
		}
	}
	for _, to := range f.back {
		if tx.row(to) == nil {
			note("a label has it live as long as %s %q, which is gone", kindNames[to.kind], named(to.key))
		}
	}
}

// mayBeAbsent tells whether a label names a manifest of an index by an index:
// those of other platforms are not fetched.
func (c *check) mayBeAbsent(tx *Tx, n, to node) bool {
	if n.kind != kindContent || to.kind != kindContent {
		return false
	}
	row, err := blobTable.Get(tx, n.ns, n.key)
	if err != nil {
		return false
	}
	for key, value := range row.Labels {
		if value == to.key && strings.HasPrefix(key, labels.GCRefManifest) {
			return true
		}
	}
	return false
}

// kindNames are the kinds of nodes in words.
var kindNames = [...]string{
	kindContainer: "container", kindImage: "image", kindLease: "lease",
	kindIngest: "ingest", kindMount: "activation", kindSnapshot: "snapshot", kindContent: "blob",
}
