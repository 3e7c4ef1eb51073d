package metadata

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// blobRow is what a check remembers of one.
type blobRow struct {
	ns     string
	digest digest.Digest
	size   int64
}

// blobRows lists the rows of blobs. What is wrong with them is reported the
// first time.
func (c *check) blobRows(again bool) ([]blobRow, error) {
	var all []blobRow
	err := c.db.View(func(tx *Tx) error {
		for key, value := range tx.scan(blobTable.bucket, "") {
			ns, d, _ := cut(string(key))
			row, err := blobTable.decode(ns, d, value)
			if err != nil {
				continue // reported already
			}
			if err := digest.Digest(d).Validate(); err != nil {
				if !again {
					c.broken(c.dropRow(blobTable.bucket, key, value), "blob", ns, d, "it is named by no digest: %v", err)
				}
				continue
			}
			all = append(all, blobRow{ns, digest.Digest(d), row.Size})
		}
		return nil
	})
	return all, err
}

// blobs looks for the bytes of every row.
func (c *check) blobs() error {
	all, err := c.blobRows(false)
	if err != nil {
		return err
	}
	for _, row := range all {
		if err := c.ctx.Err(); err != nil || !c.handOut() {
			return err
		}
		info, err := c.db.content.Stat(c.ctx, row.digest)
		switch {
		case err == nil && info.Size != row.size:
			c.broken(c.mendBlob(row.digest), "blob", row.ns, row.digest.String(), "it has %d bytes on disk, and %d by its row", info.Size, row.size)
		case err == nil:
		case errors.Is(err, errdefs.ErrNotFound):
			if c.stillMissing(row) {
				c.broken(c.mendBlob(row.digest), "blob", row.ns, row.digest.String(), "its bytes are not on disk")
			}
		default:
			c.report("blob", row.ns, row.digest.String(), "its bytes can't be looked at: %v", err)
		}
	}
	return nil
}

// stillMissing looks again under the lane of the digest, where neither a commit
// nor a removal is half-way.
func (c *check) stillMissing(row blobRow) bool {
	unlock, err := c.db.lanes.lock(c.ctx, row.digest.String())
	if err != nil {
		return false
	}
	defer unlock()
	has := false
	err = c.db.View(func(tx *Tx) error {
		has = blobTable.Has(tx, row.ns, row.digest.String())
		return nil
	})
	if err != nil || !has {
		return false
	}
	_, err = c.db.content.Stat(c.ctx, row.digest)
	return errors.Is(err, errdefs.ErrNotFound)
}

// strayBlobs looks for bytes that no row names, and that are not known to go at
// the next collection.
func (c *check) strayBlobs() error {
	var found []digest.Digest
	for info, err := range c.db.content.All(c.ctx) {
		if err != nil {
			return err
		}
		found = append(found, info.Digest)
	}
	for _, d := range found {
		if !c.handOut() {
			return nil
		}
		if err := c.strayBlob(d); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) strayBlob(d digest.Digest) error {
	named := false
	look := func(tx *Tx) error {
		named = tx.hasBlob(d.String())
		return nil
	}
	if err := c.db.View(look); err != nil || named || c.db.unnamed.has(d) {
		return err
	}
	unlock, err := c.db.lanes.lock(c.ctx, d.String())
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.db.View(look); err != nil || named || c.db.unnamed.has(d) {
		return err
	}
	if _, err := c.db.content.Stat(c.ctx, d); err == nil {
		c.broken(c.removeStray(d), "blob", "", d.String(), "its bytes are on disk, but no row names them")
	}
	return nil
}

// ingests compares rows and bytes of ingests.
func (c *check) ingests() error {
	lost, err := c.db.lostIngests(c.ctx)
	if err != nil {
		return err
	}
	for _, i := range lost {
		if !c.db.ingests.isHeld(i.ns, i.ref) && c.db.hasIngest(i.ns, i.ref, i.backend) {
			c.broken(c.dropIngest(i), "ingest", i.ns, i.ref, "its bytes are not on disk")
		}
	}
	orphans, err := c.db.orphanIngests(c.ctx)
	if err != nil {
		return err
	}
	for _, backend := range orphans {
		if _, err := c.db.content.Status(c.ctx, backend); err == nil {
			c.broken(c.discardIngest(backend), "ingest", "", backend, "its bytes are on disk, but no row names them")
		}
	}
	return nil
}

// read compares the bytes of every blob with its digest.
func (c *check) read() error {
	all, err := c.blobRows(true)
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, row := range all {
		if seen[row.digest] {
			continue
		}
		if !c.handOut() {
			return nil
		}
		seen[row.digest] = true
		if err := c.readBlob(row); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) readBlob(row blobRow) error {
	r, err := c.db.content.Open(c.ctx, row.digest)
	if err != nil {
		if !errors.Is(err, errdefs.ErrNotFound) { // that is reported already
			c.report("blob", row.ns, row.digest.String(), "it can't be opened: %v", err)
		}
		return nil
	}
	verifier := row.digest.Verifier()
	_, err = io.Copy(verifier, &stoppable{c.ctx, io.NewSectionReader(r, 0, r.Size())})
	err = errors.Join(err, r.Close())
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case err != nil:
		c.broken(c.mendBlob(row.digest), "blob", row.ns, row.digest.String(), "it can't be read: %v", err)
	case !verifier.Verified():
		c.broken(c.mendBlob(row.digest), "blob", row.ns, row.digest.String(), "its bytes have another digest")
	}
	return nil
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p)
}
