package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

const (
	// leaseTime bounds how long the objects of an import or unpacking are safe
	// from collection. Should the daemon die in the middle of it, Sweep is sooner.
	leaseTime = 24 * time.Hour
	// undoTime bounds the clean-up after a failure.
	undoTime = 30 * time.Second
)

// Store makes images out of archives and snapshots out of images. It is safe
// for concurrent use.
type Store struct {
	DB          *metadata.DB
	Platform    ocispec.Platform // of the images to choose; zero: this machine's
	Snapshotter string           // default for unpacking
	Log         *slog.Logger     // nil: none

	layers flights // one unpacking per namespace, snapshotter and chain id
}

// What happens to an object.
const (
	Loading   = "loading"
	Loaded    = "loaded"
	Unpacking = "unpacking"
	Unpacked  = "unpacked"
)

// Progress of one object. A later one of the same object replaces an earlier.
type Progress struct {
	Digest digest.Digest
	Status string // Loading...
	Offset int64  // bytes done
	Total  int64  // bytes expected; 0 where it is not known
}

// UnpackOptions say what to unpack, and where to.
type UnpackOptions struct {
	Snapshotter string // empty: the store's
	Platform    string // os/arch[/variant]; empty: the store's
}

// choice is which part of an image is wanted.
type choice struct {
	want  platforms.MatchComparer
	text  string // of the platform
	every bool   // keep the other platforms too
}

func (s *Store) choose(platform string, every bool) (choice, error) {
	p := s.Platform
	if p.OS == "" {
		p = platforms.DefaultSpec()
	}
	if platform != "" {
		var err error
		if p, err = platforms.Parse(platform); err != nil {
			return choice{}, fmt.Errorf("platform %q: %v: %w", platform, err, errdefs.ErrInvalidArgument)
		}
	}
	return choice{want: platforms.Only(p), text: platforms.Format(p), every: every}, nil
}

// snapshotter gives the snapshotter to unpack for, by name or the default one.
func (s *Store) snapshotter(scope metadata.Scope, name string) (*metadata.Snapshots, string, error) {
	if name == "" {
		name = s.Snapshotter
	}
	sn, err := s.DB.Snapshotter(scope, name)
	return sn, name, err
}

// leased calls do with a scope that has a lease: the given one, or one made for
// this call, which ends with it.
func (s *Store) leased(ctx context.Context, scope metadata.Scope, do func(metadata.Scope) error) (err error) {
	if scope.Lease != "" {
		return do(scope)
	}
	leases := s.DB.Leases(scope)
	lease, err := leases.Create(ctx, "", map[string]string{
		labels.Import:   "true",
		labels.GCExpire: time.Now().Add(leaseTime).UTC().Format(time.RFC3339),
	})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := undoContext(ctx)
		defer cancel()
		err = errors.Join(err, leases.Delete(ctx, lease.Id))
	}()
	scope.Lease = lease.Id
	return do(scope)
}

// undoContext is for clean-up: it does not end with ctx.
func undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTime)
}

func (s *Store) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// tell calls progress if there is one.
func tell(progress func(Progress), p Progress) {
	if progress != nil {
		progress(p)
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
