package metadata

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// unnamed are the blobs whose bytes may have no row any more. It saves a
// collection the walk over all that is on disk; what a dead process knew here,
// the sweep at the next start finds.
type unnamed struct {
	// mu guards what follows.
	mu      sync.Mutex
	digests map[digest.Digest]struct{}
	leaving digest.Digest         // the one that is being looked at, and is not among them meanwhile
	pinned  map[digest.Digest]int // writers that stand at the end of a blob without sending it
}

func (u *unnamed) add(d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.digests == nil {
		u.digests = map[digest.Digest]struct{}{}
	}
	u.digests[d] = struct{}{}
}

// pin keeps the bytes of a blob until it is unpinned as often.
func (u *unnamed) pin(d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pinned == nil {
		u.pinned = map[digest.Digest]int{}
	}
	u.pinned[d]++
}

// unpin tells whether a collection may have spared the blob for the pin alone.
func (u *unnamed) unpin(d digest.Digest) (spared bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pinned[d]--; u.pinned[d] == 0 {
		delete(u.pinned, d)
	}
	_, spared = u.digests[d]
	return spared || u.leaving == d
}

func (u *unnamed) list() []digest.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]digest.Digest, 0, len(u.digests))
	for d := range u.digests {
		if u.pinned[d] == 0 {
			out = append(out, d)
		}
	}
	return out
}

func (u *unnamed) isPinned(d digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.pinned[d] > 0
}

// take begins to remove a blob: who takes its row away from now on lists it
// again.
func (u *unnamed) take(d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.digests, d)
	u.leaving = d
}

// taken ends what take began, and lists the blob again if it is not done.
func (u *unnamed) taken(d digest.Digest, done bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.leaving = ""
	if !done {
		u.digests[d] = struct{}{}
	}
}

// removeUnnamed removes the bytes of blobs that have no row in any namespace.
// Only one may run.
func (db *DB) removeUnnamed(ctx context.Context) error {
	var errs []error
	var pace pace
	for _, d := range db.unnamed.list() {
		pace.step()
		db.unnamed.take(d)
		done, err := db.removeBlob(ctx, d)
		db.unnamed.taken(d, done)
		if err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// removeBlob removes the bytes of a blob unless a row names it or a writer
// stands on it. It tells whether there is no more to do. The lane keeps out a
// commit that is about to name these bytes.
func (db *DB) removeBlob(ctx context.Context, d digest.Digest) (done bool, err error) {
	unlock, err := db.lanes.lock(ctx, d.String())
	if err != nil {
		return false, err
	}
	defer unlock()
	if db.unnamed.isPinned(d) {
		return false, nil
	}
	named := false
	err = db.View(func(tx *Tx) error {
		named = tx.hasBlob(d.String())
		return nil
	})
	if err != nil || named {
		return named, err
	}
	if err := db.content.Delete(ctx, d); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return false, err
	}
	return true, nil
}

// hasBlob tells whether any namespace has a blob. It asks the rows of blobs for
// their namespaces: bytes must not go because a namespace lost its own row.
func (tx *Tx) hasBlob(d string) bool {
	cursor := tx.bolt.Bucket([]byte(blobTable.bucket)).Cursor()
	for key, _ := cursor.First(); key != nil; {
		ns, _, _ := cut(string(key))
		if blobTable.Has(tx, ns, d) {
			return true
		}
		key, _ = cursor.Seek([]byte(ns + afterSeparator))
	}
	return false
}

// has tells whether the bytes of a blob are known to go, or are kept by a
// writer.
func (u *unnamed) has(d digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, listed := u.digests[d]
	return listed || u.leaving == d || u.pinned[d] > 0
}
