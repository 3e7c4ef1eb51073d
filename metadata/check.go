package metadata

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/snapshots"
)

// CheckOptions say how deep a check goes, and what it does about what it finds.
type CheckOptions struct {
	ReadContent bool    // read every blob and compare it with its digest
	References  bool    // also tell what refers to what is gone
	RowsOnly    bool    // look whether rows can be read, and no further
	Repair      *Repair // nil: only look
}

// Problem is one thing that is not as it has to be.
type Problem struct {
	Kind      string // "blob", "ingest", "snapshot", "image", "container", "lease", "database"
	Namespace string // of the row; empty where there is none
	Object    string // digest, key or name
	Text      string // what is wrong with it
	Repaired  string // what was done about it; empty while it is open
	Failed    string // why it could not be repaired; empty if nobody tried
	Note      bool   // worth knowing, and no damage: a reference that may dangle

	fix fix // nil: nothing can be done
}

// fix puts a problem right and says in words what it did. It looks again first:
// the problem may be gone.
type fix func(ctx context.Context) (done string, err error)

// String is the problem in one line.
func (p Problem) String() string {
	if p.Namespace == "" {
		return fmt.Sprintf("%s %q: %s", p.Kind, p.Object, p.Text)
	}
	return fmt.Sprintf("%s %q of namespace %q: %s", p.Kind, p.Object, p.Namespace, p.Text)
}

// check is one run of Check.
type check struct {
	db      *DB
	ctx     context.Context
	options CheckOptions
	yield   func(Problem) bool
	found   []Problem // and not handed out yet
	ended   bool      // nobody wants more
	saved   bool      // the database as it was before the first repair
}

// report notes a problem that nothing can be done about. Who takes it may be
// slow, so it is handed out later, when no transaction is open.
func (c *check) report(kind, ns, object, format string, args ...any) {
	c.broken(nil, kind, ns, object, format, args...)
}

// broken notes a problem and what puts it right.
func (c *check) broken(how fix, kind, ns, object, format string, args ...any) {
	c.found = append(c.found, Problem{
		Kind: kind, Namespace: ns, Object: short(object), Text: fmt.Sprintf(format, args...), fix: how,
	})
}

// handOut hands out what was found, repaired if that is wanted, and tells
// whether to go on.
func (c *check) handOut() bool {
	found := c.found
	c.found = nil
	for _, p := range found {
		if c.ended {
			break
		}
		if c.options.Repair != nil && !p.Note {
			c.repair(&p)
		}
		if !c.yield(p) {
			c.ended = true
		}
	}
	return !c.ended
}

// Check compares rows with each other and with what is on disk, in both
// directions, while all goes on. What is on its way, there or away, is no
// problem, nor are references that may dangle: of a lease, an image, a
// container or a label; those are noted if asked for.
//
// Who has it repair keeps collections off meanwhile, with HoldCollections.
func (db *DB) Check(ctx context.Context, o CheckOptions) iter.Seq[Problem] {
	return func(yield func(Problem) bool) {
		c := &check{db: db, ctx: ctx, options: o, yield: yield}
		// What is in the way of bytes comes before them, and they come before what
		// is unpacked from them.
		steps := []func() error{c.rows, c.strays, c.blobs}
		if o.ReadContent {
			steps = append(steps, c.read)
		}
		steps = append(steps, c.tree, c.strayBlobs, c.ingests, c.directories, c.checkRemotes, c.checkMounts)
		if o.References {
			steps = append(steps, c.references)
		}
		if o.RowsOnly {
			steps = steps[:1]
		}
		for _, step := range steps {
			if err := step(); err != nil {
				c.report("database", "", db.options.Path, "the check could not go on: %v", err)
			}
			if !c.handOut() {
				return
			}
		}
	}
}

// kinds are the names of tables in problems.
var kinds = map[string]string{
	containerTable.bucket: "container", sandboxTable.bucket: "sandbox", imageTable.bucket: "image", leaseTable.bucket: "lease",
	blobTable.bucket: "blob", ingestTable.bucket: "ingest", snapshotTable.bucket: "snapshot",
	activationTable.bucket: "mounts",
}

// rows looks at the rows alone: whether they can be read, and agree.
func (c *check) rows() error {
	return c.db.View(func(tx *Tx) error {
		for key, value := range tx.scan(namespacesBucket, "") {
			if err := proto.Unmarshal(value, &namespaces.Namespace{}); err != nil {
				c.broken(c.renewNamespace(string(key)), "database", "", string(key), "the row of this namespace can't be read: %v", err)
			}
		}
		for bucket, empty := range messages {
			if bucket != namespacesBucket {
				c.table(tx, bucket, empty)
			}
		}
		for key := range tx.scan(heldBucket, "") {
			ns, rest, _ := cut(string(key))
			if lease, _, _ := cut(rest); !leaseTable.Has(tx, ns, lease) {
				c.broken(c.dropRow(heldBucket, key, nil), "lease", ns, lease, "it holds something, but does not exist")
			}
		}
		return nil
	})
}

// tree looks at the rows of snapshots as the tree that they are.
func (c *check) tree() error {
	return c.db.View(func(tx *Tx) error {
		c.parents(tx)
		return nil
	})
}

// table looks whether the rows of one table can be read, and their namespaces
// exist.
func (c *check) table(tx *Tx, bucket string, empty func() proto.Message) {
	for key, value := range tx.scan(bucket, "") {
		ns, rest, ok := cut(string(key))
		if !ok {
			c.broken(c.dropRow(bucket, key, value), "database", "", string(key), "a key of bucket %q has no namespace", bucket)
			continue
		}
		drop := c.dropRow(bucket, key, value)
		if err := names.Namespace(ns); err != nil {
			c.broken(drop, kinds[bucket], ns, named(rest), "its namespace can be none: %v", err)
			continue
		}
		if tx.bolt.Bucket([]byte(namespacesBucket)).Get([]byte(ns)) == nil {
			c.broken(c.renewNamespace(ns), kinds[bucket], ns, named(rest), "its namespace has no row")
		}
		renew := drop
		if bucket == blobTable.bucket {
			renew = c.renewBlob(ns, rest, drop)
		}
		m := empty()
		if err := proto.Unmarshal(value, m); err != nil {
			c.broken(renew, kinds[bucket], ns, named(rest), "its row can't be read: %v", err)
		} else if own := ownName(m); own != rest[strings.LastIndex(rest, separator)+1:] && (bucket != blobTable.bucket || digest.Digest(rest).Validate() == nil) {
			c.broken(renew, kinds[bucket], ns, named(rest), "its row is that of %q", short(own))
		}
	}
}

// parents looks whether every snapshot has the parent that its row names, and
// the index of children says the same.
func (c *check) parents(tx *Tx) {
	index := map[string]bool{}
	for key := range tx.scan(childrenBucket, "") {
		index[string(key)] = true
	}
	owner := map[string]string{} // of a directory
	for key, value := range tx.scan(snapshotTable.bucket, "") {
		ns, rest, _ := cut(string(key))
		snapshotter, name, _ := cut(rest)
		stored := &rows.Snapshot{}
		if proto.Unmarshal(value, stored) != nil {
			continue // reported already
		}
		row := treeRow(name, stored)
		directory := path(snapshotter, row.ID.String())
		if other, taken := owner[directory]; taken {
			c.report("snapshot", ns, name, "its directory %s of %s is also that of %q", row.ID, snapshotter, other)
		}
		owner[directory] = name
		if row.Parent == "" {
			continue
		}
		entry := path(ns, snapshotter, row.Parent, name)
		if !index[entry] {
			c.broken(c.addChild(entry), "snapshot", ns, name, "it is missing from the children of %q", short(row.Parent))
		}
		delete(index, entry)
		parent, err := treeRows{tx, ns, snapshotter}.Get(row.Parent)
		switch {
		case err != nil:
		case parent == nil:
			c.broken(c.remakeParent(ns, snapshotter, name, row.Parent), "snapshot", ns, name, "its parent %q does not exist", short(row.Parent))
		case parent.Kind != snapshots.Committed:
			c.report("snapshot", ns, name, "its parent %q is %s, not committed", short(row.Parent), parent.Kind)
		}
	}
	for entry := range index {
		parts := strings.SplitN(entry, separator, 4)
		c.broken(c.dropRow(childrenBucket, []byte(entry), nil), "snapshot", parts[0], named(entry), "it is counted as a child, but is none")
	}
}
