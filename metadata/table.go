package metadata

import (
	"bytes"
	"fmt"
	"iter"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

// separator ends each part of a key but the last.
const separator = "\x00"

// afterSeparator is what sorts right behind it.
const afterSeparator = "\x01"

// maxKey bounds a key with its namespace, in bytes; bbolt's own bound is twice
// that.
const maxKey = 16 << 10

// Table is rows of one kind: one message per namespace and key.
type Table[M proto.Message] struct {
	bucket string
	what   string // in errors: "container"
	kind   kind   // what collection calls these rows; 0 if it ignores them
	make   func() M
}

// path joins the parts of a key.
func path(parts ...string) string { return strings.Join(parts, separator) }

// text checks a name that may be any text: it must not be empty, hold no zero
// byte, and fit into a key.
func text(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: %w", what, errdefs.ErrInvalidArgument)
	case strings.Contains(name, separator):
		return fmt.Errorf("%s %q holds a zero byte: %w", what, short(name), errdefs.ErrInvalidArgument)
	case len(name) > maxKey/4:
		return fmt.Errorf("%s %q is longer than %d bytes: %w", what, short(name), maxKey/4, errdefs.ErrInvalidArgument)
	}
	return nil
}

// short cuts a name for an error text.
func short(name string) string {
	const shown = 128
	if len(name) > shown {
		return name[:shown] + "..."
	}
	return name
}

// named gives the last part of a key, as clients know the row.
func named(key string) string {
	return short(key[strings.LastIndex(key, separator)+1:])
}

func (t Table[M]) rows(tx *Tx) *bolt.Bucket { return tx.bolt.Bucket([]byte(t.bucket)) }

func (t Table[M]) key(ns, key string) []byte { return []byte(path(ns, key)) }

func (t Table[M]) notFound(key string) error {
	return fmt.Errorf("%s %q: %w", t.what, named(key), errdefs.ErrNotFound)
}

func (t Table[M]) exists(key string) error {
	return fmt.Errorf("%s %q: %w", t.what, named(key), errdefs.ErrAlreadyExists)
}

func (t Table[M]) decode(ns, key string, value []byte) (M, error) {
	m := t.make()
	if err := proto.Unmarshal(value, m); err != nil {
		return m, fmt.Errorf("%s %q of namespace %q can't be read: %w: %w", t.what, named(key), ns, err, errdefs.ErrDataLoss)
	}
	return m, nil
}

// Has tells whether the row exists.
func (t Table[M]) Has(tx *Tx, ns, key string) bool {
	return t.rows(tx).Get(t.key(ns, key)) != nil
}

// Get reads a row: NotFound, or DataLoss if it can't be read.
func (t Table[M]) Get(tx *Tx, ns, key string) (M, error) {
	value := t.rows(tx).Get(t.key(ns, key))
	if value == nil {
		var none M
		return none, t.notFound(key)
	}
	return t.decode(ns, key, value)
}

// Create adds a row: AlreadyExists. The namespace comes into being with it.
func (t Table[M]) Create(tx *Tx, ns, key string, m M) error {
	if t.Has(tx, ns, key) {
		return t.exists(key)
	}
	if err := tx.makeNamespace(ns); err != nil {
		return err
	}
	return t.put(tx, ns, key, m)
}

// Update replaces a row: NotFound.
func (t Table[M]) Update(tx *Tx, ns, key string, m M) error {
	if !t.Has(tx, ns, key) {
		return t.notFound(key)
	}
	return t.put(tx, ns, key, m)
}

func (t Table[M]) put(tx *Tx, ns, key string, m M) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("%s %q: %w: %w", t.what, named(key), err, errdefs.ErrInvalidArgument)
	}
	if err := tx.put(t.bucket, t.key(ns, key), value); err != nil {
		return fmt.Errorf("%s %q: %w", t.what, named(key), err)
	}
	if t.kind != 0 {
		tx.touch(node{t.kind, ns, key})
	}
	return nil
}

// Delete removes a row: NotFound.
func (t Table[M]) Delete(tx *Tx, ns, key string) error {
	if !t.Has(tx, ns, key) {
		return t.notFound(key)
	}
	if err := tx.delete(t.bucket, t.key(ns, key)); err != nil {
		return fmt.Errorf("%s %q: %w", t.what, named(key), err)
	}
	return nil
}

// All gives the rows of a namespace whose key starts with prefix, in byte order
// of the key. A row that can't be read ends it with an error.
func (t Table[M]) All(tx *Tx, ns, prefix string) iter.Seq2[M, error] {
	return func(yield func(M, error) bool) {
		for key, value := range tx.scan(t.bucket, path(ns, prefix)) {
			m, err := t.decode(ns, string(key[len(ns)+1:]), value)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Empty tells whether a namespace has no row.
func (t Table[M]) Empty(tx *Tx, ns string) bool {
	for range tx.scan(t.bucket, path(ns, "")) {
		return false
	}
	return true
}

// scan gives the keys of a bucket that start with prefix, and their values.
// Both are valid within the transaction only, and the bucket must not change
// meanwhile.
func (tx *Tx) scan(bucket, prefix string) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		start := []byte(prefix)
		cursor := tx.bolt.Bucket([]byte(bucket)).Cursor()
		for k, v := cursor.Seek(start); k != nil && bytes.HasPrefix(k, start); k, v = cursor.Next() {
			if !yield(k, v) {
				return
			}
		}
	}
}
