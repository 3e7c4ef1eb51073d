// Package metadata owns meta.db: the rows that name every container, image,
// lease, blob and snapshot, and the order between a row and what it names on
// disk.
package metadata

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/containers/v1"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// Scope is on whose behalf a store works: a namespace, and the lease that new
// objects join; no lease if empty.
type Scope struct{ Namespace, Lease string }

// Options say where the database is and what it orders.
type Options struct {
	Path     string
	Content  content.Store
	Drivers  map[string]snapshots.Driver // by name of the snapshotter
	Isolated bool                        // namespaces don't share content
	// Publish is called after the commit that made an event true, in the order
	// of commits, before the caller whose change it tells gets its answer.
	Publish func(ctx context.Context, namespace, topic string, event proto.Message)
	Now     func() time.Time
	Log     *slog.Logger
}

// DB is the open database.
type DB struct{}

// Tx is a transaction.
type Tx struct{}

func Open(ctx context.Context, o Options) (*DB, error) { return nil, errdefs.ErrNotImplemented }
func (db *DB) Close() error                            { return errdefs.ErrNotImplemented }
func (db *DB) View(fn func(*Tx) error) error           { return errdefs.ErrNotImplemented }
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	return errdefs.ErrNotImplemented
}
func (db *DB) Namespaces() *Namespaces        { return nil }
func (db *DB) Containers(s Scope) *Containers { return nil }
func (db *DB) Images(s Scope) *Images         { return nil }
func (db *DB) Leases(s Scope) *Leases         { return nil }
func (db *DB) Blobs(s Scope) *Blobs           { return nil }

// Snapshotter is the snapshotter of that name; InvalidArgument if there is none.
func (db *DB) Snapshotter(s Scope, name string) (*Snapshots, error) {
	return nil, errdefs.ErrNotImplemented
}

// Snapshotters lists the names of the drivers, sorted.
func (db *DB) Snapshotters() []string { return nil }

// Report tells what a collection did.
type Report struct {
	Content, Snapshots, Images, Leases, Ingests int64 // rows removed
	Started                                     time.Time
	Duration                                    time.Duration
	LongestStall                                time.Duration // longest time that it kept writers waiting
	NextExpiry                                  time.Time     // of the lease, image or ingest that ends next; zero if none does
	More                                        bool          // something changed meanwhile: another run may find more
}

func (db *DB) Collect(ctx context.Context) (Report, error) {
	return Report{}, errdefs.ErrNotImplemented
}

// Sweep removes what is on disk without a row.
func (db *DB) Sweep(ctx context.Context) error { return errdefs.ErrNotImplemented }

// CheckOptions say how deep a check goes.
type CheckOptions struct {
	ReadContent bool // read every blob and compare it with its digest
}

// Problem is one thing that is not as it has to be.
type Problem struct {
	Kind      string // "blob", "ingest", "snapshot", "image", "container", "lease", "database"
	Namespace string
	Object    string
	Text      string
}

func (db *DB) Check(ctx context.Context, o CheckOptions) iter.Seq[Problem] { return nil }

// OnDelete sets what is called after a commit that may have made garbage.
func (db *DB) OnDelete(hook func()) {}

// OnExpire sets what is called after a commit of something that expires.
func (db *DB) OnExpire(hook func(at time.Time)) {}

type Namespaces struct{}

func (n *Namespaces) Create(ctx context.Context, ns *namespaces.Namespace) (*namespaces.Namespace, error) {
	return nil, errdefs.ErrNotImplemented
}
func (n *Namespaces) Get(ctx context.Context, name string) (*namespaces.Namespace, error) {
	return nil, errdefs.ErrNotImplemented
}
func (n *Namespaces) List(ctx context.Context) ([]*namespaces.Namespace, error) {
	return nil, errdefs.ErrNotImplemented
}
func (n *Namespaces) Update(ctx context.Context, ns *namespaces.Namespace, mask ...string) (*namespaces.Namespace, error) {
	return nil, errdefs.ErrNotImplemented
}
func (n *Namespaces) Delete(ctx context.Context, name string) error { return errdefs.ErrNotImplemented }

type Containers struct{}

func (c *Containers) Get(ctx context.Context, id string) (*containers.Container, error) {
	return nil, errdefs.ErrNotImplemented
}
func (c *Containers) List(ctx context.Context, filters ...string) ([]*containers.Container, error) {
	return nil, errdefs.ErrNotImplemented
}
func (c *Containers) Create(ctx context.Context, container *containers.Container) (*containers.Container, error) {
	return nil, errdefs.ErrNotImplemented
}
func (c *Containers) Update(ctx context.Context, container *containers.Container, mask ...string) (*containers.Container, error) {
	return nil, errdefs.ErrNotImplemented
}
func (c *Containers) Delete(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

type Images struct{}

func (i *Images) Get(ctx context.Context, name string) (*images.Image, error) {
	return nil, errdefs.ErrNotImplemented
}
func (i *Images) List(ctx context.Context, filters ...string) ([]*images.Image, error) {
	return nil, errdefs.ErrNotImplemented
}

// Create: epoch, if not nil, is the time of creation (source_date_epoch).
func (i *Images) Create(ctx context.Context, image *images.Image, epoch *timestamppb.Timestamp) (*images.Image, error) {
	return nil, errdefs.ErrNotImplemented
}
func (i *Images) Update(ctx context.Context, image *images.Image, mask []string, epoch *timestamppb.Timestamp) (*images.Image, error) {
	return nil, errdefs.ErrNotImplemented
}

// Delete: target, if not nil, must be the stored one (by digest).
func (i *Images) Delete(ctx context.Context, name string, target *types.Descriptor) error {
	return errdefs.ErrNotImplemented
}

type Leases struct{}

func (l *Leases) Create(ctx context.Context, id string, labels map[string]string) (*leases.Lease, error) {
	return nil, errdefs.ErrNotImplemented
}
func (l *Leases) Delete(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }
func (l *Leases) List(ctx context.Context, filters ...string) ([]*leases.Lease, error) {
	return nil, errdefs.ErrNotImplemented
}
func (l *Leases) AddResource(ctx context.Context, id string, r *leases.Resource) error {
	return errdefs.ErrNotImplemented
}
func (l *Leases) DeleteResource(ctx context.Context, id string, r *leases.Resource) error {
	return errdefs.ErrNotImplemented
}
func (l *Leases) ListResources(ctx context.Context, id string) ([]*leases.Resource, error) {
	return nil, errdefs.ErrNotImplemented
}

type Blobs struct{}

func (b *Blobs) Info(ctx context.Context, d digest.Digest) (*contentapi.Info, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blobs) Update(ctx context.Context, info *contentapi.Info, mask ...string) (*contentapi.Info, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blobs) List(ctx context.Context, filters ...string) ([]*contentapi.Info, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blobs) Delete(ctx context.Context, d digest.Digest) error { return errdefs.ErrNotImplemented }
func (b *Blobs) Status(ctx context.Context, ref string) (*contentapi.Status, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blobs) ListStatuses(ctx context.Context, filters ...string) ([]*contentapi.Status, error) {
	return nil, errdefs.ErrNotImplemented
}
func (b *Blobs) Abort(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }
func (b *Blobs) Open(ctx context.Context, d digest.Digest) (content.Reader, error) {
	return nil, errdefs.ErrNotImplemented
}

// Writer opens the ingest ref. Unavailable while another writer has it;
// AlreadyExists when the namespace has want.Digest. A malformed want.Digest is
// not an error here.
func (b *Blobs) Writer(ctx context.Context, ref string, want content.Expect) (*Writer, error) {
	return nil, errdefs.ErrNotImplemented
}

// Writer is one writer's hold on an ingest. Not safe for concurrent use.
type Writer struct{}

// Expect is what a message with expected or total says (contract 4.1, steps 2
// and 3): AlreadyExists, and the ingest is gone, when the namespace has the blob.
func (w *Writer) Expect(ctx context.Context, want content.Expect) error {
	return errdefs.ErrNotImplemented
}
func (w *Writer) Status() (*contentapi.Status, error) { return nil, errdefs.ErrNotImplemented }
func (w *Writer) Digest() digest.Digest               { return "" }
func (w *Writer) Write(p []byte) (int, error)         { return 0, errdefs.ErrNotImplemented }
func (w *Writer) Truncate(size int64) error           { return errdefs.ErrNotImplemented }
func (w *Writer) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	return errdefs.ErrNotImplemented
}
func (w *Writer) Close() error { return errdefs.ErrNotImplemented }

// Snapshots is a snapshots.Snapshotter over one driver.
type Snapshots struct{}

var _ snapshots.Snapshotter = (*Snapshots)(nil)

func (s *Snapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return snapshots.Info{}, errdefs.ErrNotImplemented
}
func (s *Snapshots) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	return snapshots.Info{}, errdefs.ErrNotImplemented
}
func (s *Snapshots) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return snapshots.Usage{}, errdefs.ErrNotImplemented
}
func (s *Snapshots) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Snapshots) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Snapshots) View(ctx context.Context, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s *Snapshots) Commit(ctx context.Context, name, key, parent string, labels map[string]string) error {
	return errdefs.ErrNotImplemented
}
func (s *Snapshots) Remove(ctx context.Context, key string) error { return errdefs.ErrNotImplemented }
func (s *Snapshots) All(ctx context.Context, filters ...string) iter.Seq2[snapshots.Info, error] {
	return nil
}
