package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/diff"
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

	Layers diff.Options // how they are applied; Lower and SyncFS are not used
	// Verify is asked before anything but the manifest of a pulled image is fetched;
	// its error ends the pull. nil: all are taken.
	Verify func(ctx context.Context, name string, target ocispec.Descriptor) error

	layers flights // one unpacking per namespace, snapshotter and chain id
	blobs  flights // one fetch per digest
	pulls  leased  // leases of pulls under way
}

// What happens to an object.
const (
	Loading     = "loading" // from an archive
	Loaded      = "loaded"
	Waiting     = "waiting" // to be fetched or pushed
	Downloading = "downloading"
	Downloaded  = "downloaded"
	Uploading   = "uploading"
	Uploaded    = "uploaded"
	Exists      = "already exists" // where it was to go
	Unpacking   = "unpacking"
	Unpacked    = "unpacked"
)

// Progress of one object. A later one of the same object replaces an earlier.
type Progress struct {
	Digest    digest.Digest
	MediaType string // may be empty, from an archive
	Status    string // Loading...
	Offset    int64  // bytes done
	Total     int64  // bytes expected; 0 where it is not known
	// Parent is what names the object: the manifest of a layer, the index of a
	// manifest. Empty for what has none, or where that was told before.
	Parent digest.Digest
}

// progressOf tells how far an object is.
func progressOf(d ocispec.Descriptor, status string, offset int64) Progress {
	return Progress{Digest: d.Digest, MediaType: d.MediaType, Status: status, Offset: offset, Total: d.Size}
}

// UnpackOptions say what to unpack, and where to.
type UnpackOptions struct {
	Snapshotter string // empty: the store's
	Platform    string // os/arch[/variant]; empty: the store's
}

// choice is which part of an image is wanted: for each of the platforms the best
// there is.
type choice struct {
	wants []want
	every bool // keep the other platforms too
	// documents keeps manifests and configs of the other platforms, not their layers.
	documents bool
	// artifact says that what is no container image will do too, as it is.
	artifact bool
}

// want is a platform that is wanted.
type want struct {
	platforms.MatchComparer
	text string
}

// choose reads platforms; an empty one stands for the store's.
func (s *Store) choose(every bool, texts ...string) (choice, error) {
	c := choice{every: every}
	for _, text := range texts {
		p := s.Platform
		if p.OS == "" {
			p = platforms.DefaultSpec()
		}
		if text != "" {
			var err error
			if p, err = platforms.Parse(text); err != nil {
				return choice{}, fmt.Errorf("platform %q: %v: %w", text, err, errdefs.ErrInvalidArgument)
			}
		}
		c.wants = append(c.wants, want{platforms.Only(p), platforms.Format(p)})
	}
	return c, nil
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

// leased is a set of leases.
type leased struct {
	mu  sync.Mutex // guards ids
	ids map[string]struct{}
}

func (l *leased) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[string]struct{}{}
	}
	l.ids[id] = struct{}{}
}

func (l *leased) drop(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ids, id)
}

func (l *leased) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.ids[id]
	return ok
}

// tell calls progress if there is one.
func tell(progress func(Progress), p Progress) {
	if progress != nil {
		progress(p)
	}
}

// oneByOne gives a progress function for many callers at once.
func oneByOne(progress func(Progress)) func(Progress) {
	if progress == nil {
		return nil
	}
	var mu sync.Mutex
	return func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		progress(p)
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
