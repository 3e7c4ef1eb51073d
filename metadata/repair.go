package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
)

// Fetcher gets blobs from registries.
type Fetcher interface {
	// Fetch opens a blob or manifest of a repository at a host. NotFound: that
	// repository does not have it.
	Fetch(ctx context.Context, host, repository string, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// Repair says with what a check may put right what it finds. The zero value
// repairs with what is in the store alone.
type Repair struct {
	Fetch Fetcher // nil: nothing is fetched
	// Layer makes a committed snapshot anew, and those below it that are not
	// whole, from the blobs of an image; nil: none can be made. NotFound: no
	// image has that layer.
	Layer func(ctx context.Context, namespace, snapshotter, name string) error
}

// errGone says that a problem is gone when it is looked at again.
var errGone = errors.New("it is in order by now")

// HoldCollections keeps collections off until release is called: while rows are
// being repaired, what they keep alive is not known.
func (db *DB) HoldCollections(ctx context.Context) (release func(), err error) {
	select {
	case db.collecting <- struct{}{}:
		return func() { <-db.collecting }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-db.ctx.Done():
		return nil, errClosed
	}
}

// repair puts a problem right, if something can be done about it.
func (c *check) repair(p *Problem) {
	if p.fix == nil {
		p.Failed = "there is no repair for it"
		return
	}
	if !c.saved {
		// What a repair drops can be looked up, and brought back, from here.
		if err := c.db.backupTo(c.ctx, c.db.options.Path+BeforeRepair); err != nil {
			p.Failed = fmt.Sprintf("the database could not be saved first: %v", err)
			return
		}
		c.saved = true
	}
	done, err := p.fix(c.ctx)
	switch {
	case errors.Is(err, errGone):
		p.Repaired = err.Error()
	case err != nil:
		p.Failed = err.Error()
	default:
		p.Repaired = done
		c.db.log.Warn("repaired", slog.String("kind", p.Kind), slog.String("namespace", p.Namespace), slog.String("object", p.Object),
			slog.String("problem", p.Text), slog.String("done", done))
	}
}

// dropRow removes a row, if it is still the one with that value; nil: with any.
func (c *check) dropRow(bucket string, key, value []byte) fix {
	key, value = bytes.Clone(key), bytes.Clone(value) // they live as long as their transaction
	return func(ctx context.Context) (string, error) {
		return "its row is dropped", c.db.Update(ctx, func(tx *Tx) error {
			now := tx.bolt.Bucket([]byte(bucket)).Get(key)
			if now == nil || value != nil && !bytes.Equal(now, value) {
				return errGone
			}
			return tx.delete(bucket, key)
		})
	}
}

// renewNamespace makes the row of a namespace anew, without labels, unless it
// is there and can be read.
func (c *check) renewNamespace(name string) fix {
	return func(ctx context.Context) (string, error) {
		return "the namespace has a row again", c.db.Update(ctx, func(tx *Tx) error {
			if _, exists, err := tx.namespace(name); exists && err == nil {
				return errGone
			}
			return tx.putNamespace(&namespaces.Namespace{Name: name})
		})
	}
}

// renewBlob makes the row of a blob anew from its bytes, without labels; without
// bytes it is dropped. What its labels kept is kept off collections until the
// images have got theirs again.
func (c *check) renewBlob(ns, d string, drop fix) fix {
	return func(ctx context.Context) (string, error) {
		if digest.Digest(d).Validate() != nil {
			return drop(ctx)
		}
		info, err := c.db.content.Stat(ctx, digest.Digest(d))
		if errors.Is(err, errdefs.ErrNotFound) {
			return drop(ctx)
		}
		if err != nil {
			return "", err
		}
		return "its row is made anew, without labels", c.db.Update(ctx, func(tx *Tx) error {
			if row, err := blobTable.Get(tx, ns, d); err == nil && row.Digest == d {
				return errGone
			}
			now := timestamppb.New(tx.now)
			row := &contentapi.Info{Digest: d, Size: info.Size, CreatedAt: now, UpdatedAt: now}
			return blobTable.put(tx, ns, d, row)
		})
	}
}

// addChild adds an entry to the index of children.
func (c *check) addChild(entry string) fix {
	return func(ctx context.Context) (string, error) {
		return "added", c.db.Update(ctx, func(tx *Tx) error { return tx.put(childrenBucket, []byte(entry), []byte{}) })
	}
}

// removeStray removes bytes without a row.
func (c *check) removeStray(d digest.Digest) fix {
	return func(ctx context.Context) (string, error) {
		return "removed", second(c.db.removeBlob(ctx, d))
	}
}

// dropIngest drops the row of an ingest whose bytes are gone.
func (c *check) dropIngest(i lostIngest) fix {
	return func(ctx context.Context) (string, error) {
		return "its row is dropped", c.db.Update(ctx, func(tx *Tx) error {
			row, err := ingestTable.Get(tx, i.ns, i.ref)
			if errors.Is(err, errdefs.ErrNotFound) || err == nil && (row.BackendRef != i.backend || c.db.ingests.isHeld(i.ns, i.ref)) {
				return errGone
			}
			if err != nil {
				return err
			}
			return ingestTable.Delete(tx, i.ns, i.ref)
		})
	}
}

// discardIngest removes the bytes of an ingest without a row.
func (c *check) discardIngest(backend string) fix {
	return func(ctx context.Context) (string, error) { return "removed", c.db.discard(ctx, backend) }
}

// blobRowsOf gives the rows of a blob, by namespace.
func (db *DB) blobRowsOf(d digest.Digest) (map[string]*contentapi.Info, error) {
	out := map[string]*contentapi.Info{}
	err := db.View(func(tx *Tx) error {
		for key, value := range tx.scan(blobTable.bucket, "") {
			if ns, name, _ := cut(string(key)); name == d.String() {
				row, err := blobTable.decode(ns, name, value)
				if err != nil {
					return err
				}
				out[ns] = row
			}
		}
		return nil
	})
	return out, err
}

// eachBlobRow changes all rows of a blob, or drops those for which change
// answers false.
func (db *DB) eachBlobRow(ctx context.Context, d digest.Digest, change func(*contentapi.Info) bool) error {
	return db.Update(ctx, func(tx *Tx) error {
		for _, ns := range tx.namespaces() {
			row, err := blobTable.Get(tx, ns, d.String())
			switch {
			case errors.Is(err, errdefs.ErrNotFound):
				continue
			case err != nil:
				return err
			case change(row):
				err = blobTable.Update(tx, ns, d.String(), row)
			default:
				err = blobTable.Delete(tx, ns, d.String())
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
