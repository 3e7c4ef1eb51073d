package metadata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/snapshots"
)

const (
	// pendingBucket has the keys at remote snapshotters that may have to go: those
	// that are being made, from before the snapshotter is asked, and those whose
	// row is gone, until the snapshotter has removed them.
	pendingBucket = "pending"

	defaultDoubt    = 5 * time.Minute
	firstRemovalTry = time.Second
	lastRemovalTry  = time.Minute
	removalBatch    = 256 // keys in one round
)

// remote is a snapshotter outside of the daemon, and what has to go from it. It
// has a goroutine of its own, so that one that hangs holds up nobody else.
type remote struct {
	snapshots.Remote
	name string
	db   *DB
	// doubt is how long a key that a call has failed on may still come into being.
	doubt time.Duration
	wake  chan struct{}
	ended chan struct{}

	// mu guards what follows.
	mu sync.Mutex
	// held counts who is about to name a key; those are not removed.
	held map[string]int
	// going are the keys that are being removed; nobody may name those.
	going map[string]bool
	// doubtful are pending keys that the snapshotter may make as late as then.
	doubtful map[string]time.Time
}

func newRemote(db *DB, name string, r snapshots.Remote) *driver {
	d := &driver{
		name: name, rebase: slices.Contains(r.Capabilities(), "rebase"),
		flying: map[snapshots.ID]struct{}{}, leaving: map[snapshots.ID]struct{}{},
		remote: &remote{
			Remote: r, name: name, db: db, doubt: defaultDoubt, wake: make(chan struct{}, 1), ended: make(chan struct{}),
			held: map[string]int{}, going: map[string]bool{}, doubtful: map[string]time.Time{},
		},
	}
	// What a call has left that a crash cut off is not known by number, so numbers
	// start anew where no earlier process can have been.
	d.seen(snapshots.ID(db.options.Now().UnixMicro()))
	return d
}

// remoteKey is the key of a snapshot at a remote snapshotter.
func remoteKey(ns string, id snapshots.ID, name string) string {
	return ns + "/" + id.String() + "/" + name
}

// hold keeps a key from being removed until release. Unavailable: it is being
// removed.
func (r *remote) hold(key string) (release func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.going[key] {
		return nil, fmt.Errorf("snapshotter %q is removing %q, try again: %w", r.name, short(key), errdefs.ErrUnavailable)
	}
	r.held[key]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.held[key]--; r.held[key] == 0 {
			delete(r.held, key)
		}
	}, nil
}

// doubtAbout notes that a call about a key has failed in a way that leaves open
// whether, and when, the snapshotter does what it was asked.
func (r *remote) doubtAbout(key string) {
	r.mu.Lock()
	r.doubtful[key] = time.Now().Add(r.doubt)
	r.mu.Unlock()
	r.signal()
}

// signal has what is pending looked at.
func (r *remote) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// expect notes, before the snapshotter is asked for it, that a key may come
// into being, out of another one if from is not "".
func (r *remote) expect(ctx context.Context, ns, key, from string) error {
	return r.db.Update(ctx, func(tx *Tx) error { return tx.pend(r.name, ns, key, from) })
}

func (tx *Tx) pend(snapshotter, ns, key, from string) error {
	if err := tx.put(pendingBucket, []byte(path(snapshotter, key)), []byte(path(ns, from))); err != nil {
		return fmt.Errorf("snapshotter %q: key %q: %w", snapshotter, short(key), err)
	}
	return nil
}

func (tx *Tx) unpend(snapshotter, key string) error {
	return tx.delete(pendingBucket, []byte(path(snapshotter, key)))
}

// begin puts all that is pending at the start in doubt: the daemon that began
// it is dead, and the snapshotter may not be.
func (r *remote) begin(keys []pendingKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		r.doubtful[k.key] = time.Now().Add(r.doubt)
	}
}

// run removes what is pending, until the database closes.
func (r *remote) run() {
	defer close(r.ended)
	pause := firstRemovalTry
	for {
		left, next, err := r.round(r.db.ctx)
		if r.db.ctx.Err() != nil {
			return
		}
		var timer <-chan time.Time
		switch {
		case err != nil:
			r.db.log.Warn("snapshots of a remote snapshotter not removed, trying again later",
				slog.String("snapshotter", r.name), slog.Int("count", left), slog.Duration("in", pause), slog.Any("error", err))
			timer = time.After(pause)
			pause = min(2*pause, lastRemovalTry)
		case left > 0:
			timer = time.After(max(next, time.Millisecond))
			pause = firstRemovalTry
		default:
			pause = firstRemovalTry
		}
		select {
		case <-timer:
		case <-r.wake:
		case <-r.db.ctx.Done():
			return
		}
	}
}

// pendingKey is an entry of pendingBucket. from is the key that it was committed
// from, which is gone once this one is there.
type pendingKey struct{ key, ns, from string }

func (db *DB) pending(snapshotter string) (keys []pendingKey, err error) {
	err = db.View(func(tx *Tx) error {
		prefix := path(snapshotter, "")
		for key, value := range tx.scan(pendingBucket, prefix) {
			ns, from, _ := cut(string(value))
			keys = append(keys, pendingKey{string(key[len(prefix):]), ns, from})
		}
		return nil
	})
	return keys, err
}

// round tries to remove all that is pending once. left is how many keys stay,
// and next when those can be tried that stay for doubt alone.
func (r *remote) round(ctx context.Context) (left int, next time.Duration, err error) {
	keys, err := r.db.pending(r.name)
	if err != nil || len(keys) == 0 {
		return 0, 0, err
	}
	// Children are younger than their parents, and have higher numbers.
	slices.SortFunc(keys, func(a, b pendingKey) int { return cmp.Compare(remoteNumber(b.key), remoteNumber(a.key)) })
	removed := 0
	for len(keys) > 0 && err == nil {
		part := keys[:min(len(keys), removalBatch)]
		keys = keys[len(part):]
		var done int
		done, err = r.remove(ctx, part)
		removed += done
	}
	if removed > 0 && ctx.Err() == nil {
		if cleaned := r.Cleanup(ctx); cleaned != nil && !errdefs.IsNotImplemented(cleaned) {
			err = errors.Join(err, cleaned)
		}
	}
	rest, counted := r.db.pending(r.name)
	if counted != nil {
		return 0, 0, errors.Join(err, counted)
	}
	return len(rest), r.nextDoubt(rest), err
}

// nextDoubt is when the first doubt ends.
func (r *remote) nextDoubt(keys []pendingKey) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := lastRemovalTry
	for _, k := range keys {
		if until, ok := r.doubtful[k.key]; ok {
			next = min(next, time.Until(until))
		}
	}
	return next
}

// remoteNumber reads N of NAMESPACE/N/KEY; 0 of keys of another form.
func remoteNumber(key string) int64 {
	_, rest, _ := strings.Cut(key, "/")
	text, _, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// remove removes those keys that no row names. It ends at the first that the
// snapshotter does not answer for.
func (r *remote) remove(ctx context.Context, keys []pendingKey) (removed int, err error) {
	var free []pendingKey
	r.mu.Lock()
	for _, k := range keys {
		if r.held[k.key] == 0 {
			r.going[k.key] = true
			free = append(free, k)
		}
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, k := range free {
			delete(r.going, k.key)
		}
	}()
	// From here on nobody begins to name one of them; who has, is seen now.
	named, err := r.named(free)
	if err != nil {
		return 0, err
	}
	var gone, consumed []pendingKey
	for _, k := range free {
		if named[k.key] != nil {
			continue
		}
		doubtful := r.inDoubt(k.key) // asked before: an answer may be long in coming
		failed := r.In(k.ns).Remove(ctx, k.key)
		switch {
		case failed == nil:
			gone = append(gone, k)
			removed++
			consumed = append(consumed, k)
		case errdefs.IsNotFound(failed):
			var done bool
			if done, failed = r.wasCommitted(ctx, k); failed != nil {
				err = errors.Join(err, failed)
				break
			}
			// One that was committed was removed since, by a daemon that then died.
			if done {
				consumed = append(consumed, k)
			}
			if !doubtful {
				gone = append(gone, k)
			}
		case errdefs.IsFailedPrecondition(failed): // it has children that go first, or are not ours
			err = errors.Join(err, failed)
			continue
		default:
			r.prolong()
			err = errors.Join(err, failed)
		}
		if err != nil && failed != nil && !errdefs.IsNotFound(failed) {
			break
		}
	}
	// The rows go first: what is on the list no more is never looked at again.
	if dropped := r.drop(ctx, consumed); dropped != nil {
		return removed, errors.Join(err, dropped)
	}
	return removed, errors.Join(err, r.forget(ctx, gone, named))
}

// wasCommitted tells whether the commit that was to make a key, which is not
// there, was done all the same: what it was to be made from is gone too.
func (r *remote) wasCommitted(ctx context.Context, k pendingKey) (bool, error) {
	if k.from == "" {
		return false, nil
	}
	_, err := r.In(k.ns).Stat(ctx, k.from)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// prolong starts all doubts anew: a snapshotter that does not answer may do what
// it was asked once it does again.
func (r *remote) prolong() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.doubtful {
		r.doubtful[key] = time.Now().Add(r.doubt)
	}
}

// inDoubt tells whether a key that is not there may still come.
func (r *remote) inDoubt(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.doubtful[key])
}

// named finds the rows that name one of keys.
func (r *remote) named(keys []pendingKey) (map[string]*nameOf, error) {
	wanted := make(map[string]bool, len(keys))
	for _, k := range keys {
		wanted[k.key] = true
	}
	named := map[string]*nameOf{}
	err := r.db.View(func(tx *Tx) error {
		return tx.eachSnapshot(func(ns, snapshotter string, row *snapshots.Row) error {
			if snapshotter == r.name && wanted[row.Remote] {
				named[row.Remote] = &nameOf{ns, row.Name}
			}
			return nil
		})
	})
	return named, err
}

// nameOf is where the row of a snapshot is.
type nameOf struct{ ns, name string }

// forget strikes keys off the list: those that are gone, and those that a row
// names, if it still does.
func (r *remote) forget(ctx context.Context, gone []pendingKey, named map[string]*nameOf) error {
	if len(gone) == 0 && len(named) == 0 {
		return nil
	}
	err := r.db.Update(ctx, func(tx *Tx) error {
		for _, k := range gone {
			if err := tx.unpend(r.name, k.key); err != nil {
				return err
			}
		}
		for key, at := range named {
			row, err := treeRows{tx, at.ns, r.name}.Get(at.name)
			if err != nil {
				return err
			}
			if row == nil || row.Remote != key {
				continue
			}
			if err := tx.unpend(r.name, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range gone {
		delete(r.doubtful, k.key)
	}
	for key := range named {
		delete(r.doubtful, key)
	}
	return nil
}

// drop removes the rows of snapshots whose commit was cut off after the
// snapshotter had done it: what they name is no more.
func (r *remote) drop(ctx context.Context, consumed []pendingKey) error {
	for _, k := range consumed {
		if k.from == "" {
			continue
		}
		parts := strings.SplitN(k.from, "/", 3)
		if len(parts) != 3 {
			continue
		}
		err := r.db.Update(ctx, func(tx *Tx) error {
			row, err := treeRows{tx, k.ns, r.name}.Get(parts[2])
			if err != nil || row == nil || row.Remote != k.from {
				return err
			}
			_, err = tx.removeSnapshot(k.ns, r.name, parts[2])
			return err
		})
		if err != nil {
			return err
		}
		r.signal() // its key is on the list now
	}
	return nil
}

// openRemotes counts the numbers that rows of remote snapshotters have, and
// starts what removes from them.
func (db *DB) openRemotes() error {
	if len(db.remotes) == 0 {
		return nil
	}
	err := db.View(func(tx *Tx) error {
		for key, value := range tx.scan(snapshotTable.bucket, "") {
			ns, rest, _ := cut(string(key))
			snapshotter, _, _ := cut(rest)
			// One that can't be read has a number from before this start.
			if row, err := snapshotTable.decode(ns, rest, value); err == nil && db.remotes[snapshotter] != nil {
				db.remotes[snapshotter].seen(snapshots.ID(row.Id))
			}
		}
		return nil
	})
	for _, d := range db.remotes {
		keys, failed := db.pending(d.name)
		err = errors.Join(err, failed)
		d.remote.begin(keys)
	}
	return err
}
