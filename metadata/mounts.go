package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata/rows"
)

// Mounts is the activations of a namespace: mounts that the daemon has made for
// a client, in directories that last as long as the boot.
type Mounts struct {
	db    *DB
	scope Scope
}

// Mounts is the store of activations.
func (db *DB) Mounts(s Scope) *Mounts { return &Mounts{db, s} }

// activations says which directories the rows don't tell of.
type activations struct {
	place  *activate.Place // nil: there are none
	bootID string

	// mu guards what follows.
	mu     sync.Mutex
	last   uint64              // highest number ever given out, or found at the start
	flying map[uint64]struct{} // given out, and the row is not there yet
	// leftover says that something could not be unmounted.
	leftover bool
}

// take gives a number that was not used in this boot; land is called when its
// row is there, or nothing of it is left.
func (a *activations) take() (id uint64, land func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	id = a.last
	if a.flying == nil {
		a.flying = map[uint64]struct{}{}
	}
	a.flying[id] = struct{}{}
	return id, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.flying, id)
	}
}

func (a *activations) seen(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = max(a.last, id)
}

func (a *activations) isFlying(id uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, flying := a.flying[id]
	return flying
}

// stands tells whether the mounts of a row can be there: those of an earlier
// boot can't.
func (a *activations) stands(row *rows.Activation) bool { return row.BootId == a.bootID }

// ActivateOptions are what an activation gets beside its mounts.
type ActivateOptions struct {
	Labels    map[string]string
	Temporary bool // it goes when nothing refers to it
}

func (m *Mounts) check(name string) error {
	if err := names.Namespace(m.scope.Namespace); err != nil {
		return err
	}
	return text("name of an activation", name)
}

// Activate makes those mounts that a client can't make by itself, and tells
// which are left to it. Unimplemented: it can make them all. AlreadyExists.
func (m *Mounts) Activate(ctx context.Context, name string, mounts []mount.Mount, o ActivateOptions) (*types.ActivationInfo, error) {
	if err := m.check(name); err != nil {
		return nil, err
	}
	given, err := validLabels(o.Labels)
	if err != nil {
		return nil, fmt.Errorf("activation %q: %w", short(name), err)
	}
	a := &m.db.activations
	if a.place == nil || !activate.Needs(mounts) {
		return nil, fmt.Errorf("activation %q: none of its mounts needs a handler; mount them as they are: %w", short(name), errdefs.ErrNotImplemented)
	}
	err = m.db.View(func(tx *Tx) error {
		if err := tx.needLease(m.scope); err != nil {
			return err
		}
		return m.free(tx, name)
	})
	if err != nil {
		return nil, err
	}
	id, land := a.take()
	defer land()
	made, err := a.place.Make(ctx, id, mounts)
	if err != nil {
		return nil, fmt.Errorf("activation %q: %w", short(name), err)
	}
	row := &rows.Activation{
		Info: &types.ActivationInfo{Name: name, Labels: given}, Id: id, BootId: a.bootID,
		Temporary: o.Temporary || m.scope.Lease != "", // then it lives as long as the lease
	}
	for _, active := range made.Active {
		row.Info.Active = append(row.Info.Active, &types.ActiveMount{
			Mount: wireMount(active.Mount), MountPoint: active.Point, MountedAt: timestamppb.New(active.At),
		})
	}
	for _, left := range made.System {
		row.Info.System = append(row.Info.System, wireMount(left))
	}
	if err := m.record(ctx, name, row); err != nil {
		if !m.db.hasActivation(id) {
			err = errors.Join(err, m.db.unmount(ctx, id))
		}
		return nil, err
	}
	return proto.CloneOf(row.Info), nil
}

// record adds the row of mounts that are there.
func (m *Mounts) record(ctx context.Context, name string, row *rows.Activation) error {
	return m.db.Update(ctx, func(tx *Tx) error {
		if err := tx.needLease(m.scope); err != nil {
			return err
		}
		if err := m.free(tx, name); err != nil {
			return err
		}
		if err := tx.makeNamespace(m.scope.Namespace); err != nil {
			return err
		}
		row.CreatedAt = timestamppb.New(tx.now)
		if err := activationTable.put(tx, m.scope.Namespace, name, row); err != nil {
			return err
		}
		return tx.join(m.scope, resourceMounts, name)
	})
}

// free answers AlreadyExists if a name is in use. What an earlier boot has left
// does not count.
func (m *Mounts) free(tx *Tx, name string) error {
	row, err := activationTable.Get(tx, m.scope.Namespace, name)
	if errdefs.IsNotFound(err) || err == nil && !m.db.activations.stands(row) {
		return nil
	}
	if err != nil {
		return err
	}
	return activationTable.exists(name)
}

// get reads the row of mounts that can be there: NotFound.
func (m *Mounts) get(tx *Tx, name string) (*rows.Activation, error) {
	row, err := activationTable.Get(tx, m.scope.Namespace, name)
	if err == nil && !m.db.activations.stands(row) {
		return nil, activationTable.notFound(name)
	}
	return row, err
}

// Deactivate unmounts what Activate mounted: NotFound. The row goes first; what
// can't be unmounted is tried again later.
func (m *Mounts) Deactivate(ctx context.Context, name string) error {
	if err := m.check(name); err != nil {
		return err
	}
	var row *rows.Activation
	err := m.db.Update(ctx, func(tx *Tx) (err error) {
		if row, err = m.get(tx, name); err != nil {
			return err
		}
		tx.garbage = tx.garbage || losesReference(row.GetInfo().GetLabels(), nil)
		if err := activationTable.Delete(tx, m.scope.Namespace, name); err != nil {
			return err
		}
		return tx.leave(m.scope, resourceMounts, name)
	})
	if row == nil || err != nil && m.db.hasActivation(row.Id) {
		return err
	}
	if failed := m.db.unmount(ctx, row.Id); failed != nil {
		return errors.Join(err, fmt.Errorf("activation %q: %w", short(name), failed))
	}
	return err
}

// Info tells about an activation: NotFound.
func (m *Mounts) Info(_ context.Context, name string) (*types.ActivationInfo, error) {
	if err := m.check(name); err != nil {
		return nil, err
	}
	var row *rows.Activation
	err := m.db.View(func(tx *Tx) (err error) {
		row, err = m.get(tx, name)
		return err
	})
	return row.GetInfo(), err
}

// Update changes the labels of an activation: NotFound, InvalidArgument.
func (m *Mounts) Update(ctx context.Context, info *types.ActivationInfo, mask ...string) (*types.ActivationInfo, error) {
	if err := m.check(info.GetName()); err != nil {
		return nil, err
	}
	var row *rows.Activation
	err := m.db.Update(ctx, func(tx *Tx) (err error) {
		if row, err = m.get(tx, info.GetName()); err != nil {
			return err
		}
		before := cloneLabels(row.Info.Labels)
		if err := updateLabels("activation", &row.Info.Labels, info.GetLabels(), mask); err != nil {
			return err
		}
		tx.garbage = tx.garbage || losesReference(before, row.Info.Labels)
		return activationTable.put(tx, m.scope.Namespace, info.GetName(), row)
	})
	if err != nil {
		return nil, err
	}
	return row.Info, nil
}

// List gives the activations that one of the filters matches, in byte order of
// their names.
func (m *Mounts) List(_ context.Context, filters ...string) (out []*types.ActivationInfo, err error) {
	if err := names.Namespace(m.scope.Namespace); err != nil {
		return nil, err
	}
	err = m.db.View(func(tx *Tx) (err error) {
		out, err = list(func(yield func(*types.ActivationInfo, error) bool) {
			for row, err := range activationTable.All(tx, m.scope.Namespace, "") {
				if err == nil && !m.db.activations.stands(row) {
					continue
				}
				if !yield(row.GetInfo(), err) {
					return
				}
			}
		}, activationFields, filters)
		return err
	})
	return out, err
}

func wireMount(m mount.Mount) *types.Mount {
	return &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
}

// unmountTimeout bounds the end of one activation.
const unmountTimeout = 30 * time.Second

// unmount takes away the mounts of a number that has no row any more.
func (db *DB) unmount(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	err := db.activations.place.Remove(ctx, id)
	if err != nil {
		db.activations.mu.Lock()
		db.activations.leftover = true
		db.activations.mu.Unlock()
	}
	return err
}

// hasActivation tells whether a row stands for a number; on doubt one does.
func (db *DB) hasActivation(id uint64) bool {
	has := false
	err := db.View(func(tx *Tx) error {
		return tx.eachActivation(func(_, _ string, row *rows.Activation) {
			has = has || db.activations.stands(row) && row.Id == id
		})
	})
	return err != nil || has
}

// eachActivation gives the rows of all namespaces.
func (tx *Tx) eachActivation(visit func(ns, name string, row *rows.Activation)) error {
	for key, value := range tx.scan(activationTable.bucket, "") {
		ns, name, _ := cut(string(key))
		row, err := activationTable.decode(ns, name, value)
		if err != nil {
			return err
		}
		visit(ns, name, row)
	}
	return nil
}

// openMounts finds the highest number in use.
func (db *DB) openMounts(ctx context.Context) error {
	a := &db.activations
	if a.place == nil {
		return nil
	}
	err := db.View(func(tx *Tx) error {
		for key, value := range tx.scan(activationTable.bucket, "") {
			ns, name, _ := cut(string(key))
			// One that can't be read has a directory, which counts below.
			if row, err := activationTable.decode(ns, name, value); err != nil {
				db.log.Error("unreadable row; run `berth fsck`", slog.Any("error", err))
			} else if a.stands(row) {
				a.seen(row.Id)
			}
		}
		return nil
	})
	for id, failed := range a.place.IDs(ctx) {
		if failed != nil {
			return errors.Join(err, failed)
		}
		a.seen(id)
	}
	return err
}

// sweepMounts drops the rows of earlier boots, and unmounts what has no row.
func (db *DB) sweepMounts(ctx context.Context) error {
	a := &db.activations
	if a.place == nil {
		return nil
	}
	type key struct{ ns, name string }
	var old []key
	err := db.View(func(tx *Tx) error {
		return tx.eachActivation(func(ns, name string, row *rows.Activation) {
			if !a.stands(row) {
				old = append(old, key{ns, name})
			}
		})
	})
	if err == nil && len(old) > 0 {
		err = db.Update(ctx, func(tx *Tx) error {
			for _, k := range old {
				row, err := activationTable.Get(tx, k.ns, k.name)
				if errdefs.IsNotFound(err) || err == nil && a.stands(row) {
					continue
				}
				if err != nil {
					return err
				}
				if err := activationTable.Delete(tx, k.ns, k.name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, db.sweepMounted(ctx))
}

// sweepMounted unmounts what has no row.
func (db *DB) sweepMounted(ctx context.Context) error {
	a := &db.activations
	var errs []error
	for id, err := range a.place.IDs(ctx) {
		if err != nil {
			return err
		}
		// First whether it is on its way: it lands after its row is there.
		if a.isFlying(id) || db.hasActivation(id) {
			continue
		}
		if err := a.place.Remove(ctx, id); err != nil {
			errs = append(errs, err)
			continue
		}
		db.log.Info("mounts without a row are gone", slog.Uint64("activation", id))
	}
	a.mu.Lock()
	a.leftover = len(errs) > 0
	a.mu.Unlock()
	return errors.Join(errs...)
}

// retryMounts tries again what could not be unmounted.
func (db *DB) retryMounts(ctx context.Context) {
	db.activations.mu.Lock()
	again := db.activations.leftover
	db.activations.mu.Unlock()
	if !again {
		return
	}
	if err := db.sweepMounted(ctx); err != nil {
		db.log.Warn("mounts without a row not unmounted, trying again later", slog.Any("error", err))
	}
}

// checkMounts looks whether the directories of activations are there.
func (c *check) checkMounts() error {
	a := &c.db.activations
	if a.place == nil {
		return nil
	}
	type missing struct {
		ns, name string
		id       uint64
	}
	var all []missing
	err := c.db.View(func(tx *Tx) error {
		return tx.eachActivation(func(ns, name string, row *rows.Activation) {
			if a.stands(row) {
				all = append(all, missing{ns, name, row.Id})
			}
		})
	})
	if err != nil {
		return err
	}
	// The directories are read after the rows: those came first.
	there := map[uint64]bool{}
	for id, err := range a.place.IDs(c.ctx) {
		if err != nil {
			return err
		}
		there[id] = true
	}
	for _, m := range all {
		if !there[m.id] && c.db.hasActivation(m.id) {
			c.report("mounts", m.ns, m.name, "what was mounted is not there: deactivate it")
		}
	}
	return nil
}
