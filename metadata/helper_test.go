package metadata

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/containers/v1"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// testDriver keeps a snapshot as a directory with nothing of its own in it. Its
// steps are durable ones, so they are fault points.
type testDriver struct {
	root string
	lazy bool // removals are not flushed
}

func (d *testDriver) dir(id snapshots.ID) string { return filepath.Join(d.root, id.String()) }

func (d *testDriver) Create(_ context.Context, id snapshots.ID, parents []snapshots.ID, _ snapshots.CreateOptions) error {
	for _, p := range parents {
		if _, err := os.Stat(d.dir(p)); err != nil {
			return err
		}
	}
	if err := durable.Mkdir("testdriver.create", d.dir(id), 0o700); err != nil {
		return errors.Join(err, os.RemoveAll(d.dir(id)))
	}
	return nil
}

func (d *testDriver) Mounts(id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) ([]mount.Mount, error) {
	options := []string{o.Kind.String()}
	for _, p := range parents {
		options = append(options, "parent="+p.String())
	}
	return []mount.Mount{{Type: "bind", Source: d.dir(id), Options: options}}, nil
}

func (d *testDriver) Flush(_ context.Context, id snapshots.ID) error {
	return durable.SyncDir("testdriver.flush", d.dir(id))
}

func (d *testDriver) Remove(_ context.Context, id snapshots.ID) error {
	if err := os.RemoveAll(d.dir(id)); err != nil || d.lazy {
		return err
	}
	return durable.SyncDir("testdriver.remove", d.root)
}

func (d *testDriver) Usage(_ context.Context, id snapshots.ID) (snapshots.Usage, error) {
	entries, err := os.ReadDir(d.dir(id))
	return snapshots.Usage{Size: int64(len(entries)) * 10, Inodes: int64(len(entries))}, err
}

func (d *testDriver) IDs(context.Context) iter.Seq2[snapshots.ID, error] {
	return func(yield func(snapshots.ID, error) bool) {
		entries, err := os.ReadDir(d.root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(0, err)
			return
		}
		for _, entry := range entries {
			n, err := strconv.ParseUint(entry.Name(), 10, 64)
			if !yield(snapshots.ID(n), err) {
				return
			}
		}
	}
}

func (d *testDriver) Root() string           { return d.root }
func (d *testDriver) Capabilities() []string { return []string{"rebase"} }

// published are the events of a store, in order, as "NAMESPACE TOPIC TEXT".
type published struct {
	mu     sync.Mutex
	events []string
}

func (p *published) publish(_ context.Context, ns, topic string, event proto.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := ""
	for _, field := range []string{"id", "name", "key", "digest"} {
		if f := event.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)); f != nil {
			name = event.ProtoReflect().Get(f).String()
			break
		}
	}
	p.events = append(p.events, fmt.Sprintf("%s %s %s", ns, topic, name))
}

func (p *published) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.events
	p.events = nil
	return out
}

// world is a database with all below it, in a directory of its own.
type world struct {
	*DB
	t       testing.TB
	dir     string
	options Options
	disk    *content.Disk
	events  *published
	// clock is added to the real time.
	clock time.Duration
}

var bg = context.Background()

// newWorld opens a fresh database, and at the end of the test looks whether it
// is in order.
func newWorld(t testing.TB, change ...func(*Options)) *world {
	t.Helper()
	leak.CheckProcess(t)
	w := newWorldIn(t, t.TempDir(), change...)
	t.Cleanup(func() {
		w.mustBeClean()
		w.close()
	})
	return w
}

// newWorldIn is newWorld in a directory of the caller's.
func newWorldIn(t testing.TB, dir string, change ...func(*Options)) *world {
	t.Helper()
	w := &world{t: t, dir: dir, events: &published{}}
	for _, name := range []string{"native", "other"} {
		if err := os.Mkdir(filepath.Join(w.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.options = Options{
		Path: filepath.Join(w.dir, "meta.db"),
		Drivers: map[string]snapshots.Driver{
			"native": &testDriver{root: filepath.Join(w.dir, "native")}, "other": &testDriver{root: filepath.Join(w.dir, "other")},
		},
		Publish: w.events.publish,
		Now:     func() time.Time { return time.Now().Add(w.clock) },
	}
	for _, c := range change {
		c(&w.options)
	}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.disk, err = content.Open(filepath.Join(w.dir, "content")); err != nil {
		w.t.Fatal(err)
	}
	w.options.Content = w.disk
	if w.DB, err = Open(bg, w.options); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.t.Helper()
	if err := errors.Join(w.DB.Close(), w.disk.Close()); err != nil {
		w.t.Error(err)
	}
}

// restart is what a new process does.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
	if err := w.Sweep(bg); err != nil {
		w.t.Error(err)
	}
}

func (w *world) mustBeClean() {
	w.t.Helper()
	for p := range w.Check(bg, CheckOptions{ReadContent: true}) {
		w.t.Errorf("check: %v", p)
	}
}

func (w *world) collect() Report {
	w.t.Helper()
	report, err := w.Collect(bg)
	if err != nil {
		w.t.Fatal(err)
	}
	<-w.unlinker.start() // also beyond the patience of a collection
	return report
}

func (w *world) snapshotter(s Scope, name string) *Snapshots {
	w.t.Helper()
	out, err := w.Snapshotter(s, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// blob writes and commits bytes.
func (w *world) blob(s Scope, data string, labels map[string]string) digest.Digest {
	w.t.Helper()
	d, err := writeBlob(w.DB, s, data, labels)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func writeBlob(db *DB, s Scope, data string, labels map[string]string) (digest.Digest, error) {
	d := digest.FromString(data)
	writer, err := db.Blobs(s).Writer(bg, "ref-"+rand.Text(), content.Expect{})
	if err != nil {
		return d, err
	}
	_, err = writer.Write([]byte(data))
	if err == nil {
		err = writer.Commit(bg, int64(len(data)), d, labels)
	}
	return d, errors.Join(err, writer.Close())
}

// layer makes a committed snapshot.
func (w *world) layer(s *Snapshots, name, parent string, labels map[string]string) {
	w.t.Helper()
	key := "prepare " + name
	w.must(second(s.Prepare(bg, key, parent, nil)))
	w.must(s.Commit(bg, name, key, "", labels))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// result names the kind of an error as the vectors do.
func result(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errdefs.IsInvalidArgument(err):
		return "invalid_argument"
	case errdefs.IsNotFound(err):
		return "not_found"
	case errdefs.IsAlreadyExists(err):
		return "already_exists"
	case errdefs.IsFailedPrecondition(err):
		return "failed_precondition"
	case errdefs.IsNotImplemented(err):
		return "unimplemented"
	case errdefs.IsUnavailable(err):
		return "unavailable"
	}
	return err.Error()
}

func testContainer(id string) *containers.Container {
	return &containers.Container{
		Id: id, Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec: &anypb.Any{TypeUrl: "spec", Value: []byte("{}")},
	}
}

func testImage(name string, d digest.Digest) *images.Image {
	return &images.Image{Name: name, Target: &types.Descriptor{
		MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: d.String(), Size: 6,
		Annotations: map[string]string{"an": "v"},
	}}
}

func keys[M any](rows []M, name func(M) string) []string {
	out := []string{}
	for _, row := range rows {
		out = append(out, name(row))
	}
	slices.Sort(out)
	return out
}

func contentInfo(d digest.Digest) *contentapi.Info {
	return &contentapi.Info{Digest: d.String(), Size: 1, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now()}
}
