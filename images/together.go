package images

import (
	"context"
	"errors"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/internal/mount"
)

// stack is layers that are laid down side by side, each in a snapshot without a
// parent, which it takes on when it is committed. Where a layer depends on what is
// below it, it waits for that.
type stack struct {
	u     *unpacker
	first int      // layer of the first step
	base  []string // directories of the layers that stand, nearest first
	steps []*step
}

// step is one layer of a stack.
type step struct {
	laid   chan struct{} // closed once the layer is laid down, or found to stand
	dir    string        // where it is; set before laid is closed
	key    string        // of its snapshot; empty: it stands
	result diff.Result
	leave  func() // ends the flight; nil: there is none
}

// together unpacks the layers from have on, several at once.
func (u *unpacker) together(ctx context.Context, have int) (err error) {
	s := &stack{u: u, first: have}
	if have > 0 {
		if s.base, err = u.dirs(have); err != nil {
			return err
		}
	}
	for range u.layers[have:] {
		s.steps = append(s.steps, &step{laid: make(chan struct{})})
	}
	defer func() { err = errors.Join(err, s.undo(ctx)) }()
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return s.layAll(ctx) })
	both.Go(func() error { return s.commitAll(ctx) })
	return both.Wait()
}

// dirs gives the directories of the first n layers, which stand, nearest first.
func (u *unpacker) dirs(n int) ([]string, error) {
	mounts, err := u.into.Below(u.chain(n))
	if err != nil {
		return nil, err
	}
	return diff.LowerDirs(mounts)
}

// layAll lays the layers down. They begin in their order, so that what one waits for
// has begun.
func (s *stack) layAll(ctx context.Context) error {
	layers, ctx := errgroup.WithContext(ctx)
	layers.SetLimit(runtime.GOMAXPROCS(0))
	for i, one := range s.steps {
		layers.Go(func() error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return s.u.atLayer(s.first+i, s.lay(ctx, i, one))
		})
	}
	return layers.Wait()
}

// lay lays one layer down.
func (s *stack) lay(ctx context.Context, i int, one *step) (err error) {
	u, n := s.u, s.first+i
	if one.leave, err = u.store.layers.enter(ctx, u.flight(u.chain(n+1))); err != nil {
		return err
	}
	var mounts []mount.Mount
	if one.key, mounts, err = u.prepare(ctx, n, ""); err != nil {
		one.key = ""
		return err
	}
	if one.key == "" {
		dirs, err := u.dirs(n + 1)
		if err != nil {
			return err
		}
		one.dir = dirs[0]
		close(one.laid)
		return nil
	}
	dirs, err := diff.LowerDirs(mounts)
	if err != nil {
		return err
	}
	one.dir = dirs[0]
	var lower func() ([]string, error)
	if n > 0 {
		lower = func() ([]string, error) { return s.below(ctx, i) }
	}
	if one.result, err = u.apply(ctx, n, mounts, lower); err != nil {
		return err
	}
	close(one.laid)
	return nil
}

// below waits for the layers below a step and gives their directories, nearest first.
func (s *stack) below(ctx context.Context, i int) ([]string, error) {
	dirs := slices.Clone(s.base)
	for _, one := range s.steps[:i] {
		if err := one.wait(ctx); err != nil {
			return nil, err
		}
		dirs = append([]string{one.dir}, dirs...)
	}
	return dirs, nil
}

func (o *step) wait(ctx context.Context) error {
	select {
	case <-o.laid:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// commitAll commits the layers in their order, each as soon as it can be.
func (s *stack) commitAll(ctx context.Context) error {
	for i, one := range s.steps {
		if err := one.wait(ctx); err != nil {
			return err
		}
		if err := s.u.atLayer(s.first+i, s.commit(ctx, i, one)); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) commit(ctx context.Context, i int, one *step) (err error) {
	u, n := s.u, s.first+i
	defer func() {
		one.leave()
		one.leave = nil
	}()
	if one.key == "" {
		return nil
	}
	if n > 0 && !one.result.Root {
		under := s.base
		if i > 0 {
			under = []string{s.steps[i-1].dir}
		}
		err = diff.InheritRoot(one.dir, under[0])
	}
	if err == nil {
		err = u.into.Commit(ctx, u.chain(n+1), one.key, u.chain(n), u.about(n))
	}
	switch {
	case err == nil:
		one.key = ""
	case errdefs.IsAlreadyExists(err):
		// Another client has been faster. What is here goes later: a layer above may
		// be reading it.
	default:
		return err
	}
	tell(u.progress, progressOf(u.layers[n], Unpacked, u.layers[n].Size))
	return nil
}

// undo removes what was laid down and not committed.
func (s *stack) undo(ctx context.Context) error {
	var errs []error
	for _, one := range s.steps {
		if one.key != "" {
			errs = append(errs, s.u.discard(ctx, one.key))
		}
		if one.leave != nil {
			one.leave()
		}
	}
	return errors.Join(errs...)
}
