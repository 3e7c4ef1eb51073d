package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/native"
	"github.com/berthd/berth/snapshots/overlay"
)

var (
	bg    = context.Background()
	scope = metadata.Scope{Namespace: "test"}
	here  = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other = ocispec.Platform{OS: "linux", Architecture: "s390x"}
)

// world is a store over a real database, real content and real snapshots.
type world struct {
	*Store
	t  testing.TB
	db *metadata.DB
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, overlay.Config{})
}

// newWorldOf is newWorld with such an overlayfs.
func newWorldOf(t testing.TB, o overlay.Config) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and overlay")
	}
	leak.CheckProcess(t)
	dir, err := os.MkdirTemp("", "berth-images-") // no comma, as in names of tests
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir) // for mounts
	blobs, err := content.Open(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := native.Open(filepath.Join(dir, "native"))
	if err != nil {
		t.Fatal(err)
	}
	o.Root = filepath.Join(dir, "overlayfs")
	layered, err := overlay.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	db, err := metadata.Open(bg, metadata.Options{
		Path: filepath.Join(dir, "meta.db"), Content: blobs,
		Drivers: map[string]snapshots.Driver{"overlayfs": layered, "native": plain},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, db: db, Store: &Store{DB: db, Platform: here, Snapshotter: "overlayfs"}}
	t.Cleanup(func() {
		for p := range db.Check(bg, metadata.CheckOptions{ReadContent: true}) {
			t.Errorf("check: %v", p)
		}
		if err := errors.Join(db.Close(), layered.Close(), plain.Close(), blobs.Close()); err != nil {
			t.Error(err)
		}
		if left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(left) > 0 {
			t.Fatalf("mounts: %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// mustImport imports an archive of one image.
func (w *world) mustImport(archive []byte, o ImportOptions) Imported {
	w.t.Helper()
	made, err := w.Import(bg, scope, bytes.NewReader(archive), o, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(made) != 1 {
		w.t.Fatalf("made %+v", made)
	}
	return made[0]
}

// names lists the images.
func (w *world) names() string {
	w.t.Helper()
	list, err := w.db.Images(scope).List(bg)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, image := range list {
		names = append(names, image.Name)
	}
	return strings.Join(names, " ")
}

// empty collects, and checks that nothing at all is left.
func (w *world) empty() {
	w.t.Helper()
	if names := w.names(); names != "" {
		w.t.Errorf("images: %s", names)
	}
	leases, err := w.db.Leases(scope).List(bg)
	if err != nil || len(leases) > 0 {
		w.t.Errorf("leases: %v, %v", leases, err)
	}
	statuses, err := w.db.Blobs(scope).ListStatuses(bg)
	if err != nil || len(statuses) > 0 {
		w.t.Errorf("ingests: %v, %v", statuses, err)
	}
	for _, key := range w.snapshots("overlayfs") {
		if strings.HasPrefix(key, "extract-") {
			w.t.Errorf("snapshot: %s", key)
		}
	}
	w.collect()
	if all := w.snapshots("overlayfs"); len(all) > 0 {
		w.t.Errorf("snapshots: %v", all)
	}
	if all := w.content(); len(all) > 0 {
		w.t.Errorf("content: %v", all)
	}
}

func (w *world) collect() {
	w.t.Helper()
	for more := true; more; {
		report, err := w.db.Collect(bg)
		if err != nil {
			w.t.Fatal(err)
		}
		more = report.More
	}
}

func (w *world) snapshots(name string) []string {
	w.t.Helper()
	sn, err := w.db.Snapshotter(scope, name)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for info, err := range sn.All(bg) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, info.Name)
	}
	return all
}

func (w *world) content() []string {
	w.t.Helper()
	list, err := w.db.Blobs(scope).List(bg)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, info := range list {
		all = append(all, info.Digest)
	}
	return all
}

// look mounts a view of an unpacked image.
func (w *world) look(snapshotter, chain string, do func(root string)) {
	w.t.Helper()
	sn, err := w.db.Snapshotter(scope, snapshotter)
	if err != nil {
		w.t.Fatal(err)
	}
	mounts, err := sn.View(bg, "look", chain, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := mount.WithTemp(bg, mounts, func(root string) error { do(root); return nil }); err != nil {
		w.t.Fatal(err)
	}
	if err := sn.Remove(bg, "look"); err != nil {
		w.t.Fatal(err)
	}
}

// wantFile checks a file of an unpacked image; "" is one that must not be.
func wantFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want == "" {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		return
	}
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, %v", path, got, err)
	}
}

func layer(t testing.TB, files ...testimage.File) []byte {
	t.Helper()
	data, err := testimage.Layer(files...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// small is an image of two layers: the second hides a file of the first.
func small(t testing.TB, name string, p ocispec.Platform) testimage.Image {
	return testimage.Image{Name: name, Platform: p, Layers: [][]byte{
		layer(t, testimage.File{Name: "etc/"}, testimage.File{Name: "etc/gone", Body: "1"}, testimage.File{Name: "etc/arch", Body: p.Architecture}),
		layer(t, testimage.File{Name: "etc/.wh.gone"}, testimage.File{Name: "etc/new", Body: "2", Uid: 1000}),
	}}
}

func layout(t testing.TB, compression string, images ...testimage.Image) *testimage.Layout {
	t.Helper()
	l, err := testimage.NewLayout(compression, images...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// several is a layout of an image for several platforms: its index, and the
// manifests in it.
func several(t testing.TB, name string, images ...testimage.Image) (l *testimage.Layout, index ocispec.Descriptor, manifests []ocispec.Descriptor) {
	t.Helper()
	l = layout(t, testimage.Gzip)
	for _, image := range images {
		d, err := l.Add(testimage.Gzip, image)
		if err != nil {
			t.Fatal(err)
		}
		manifests = append(manifests, d)
	}
	index, err := l.AddIndex(manifests...)
	if err == nil {
		err = l.List(index, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l, index, manifests
}

func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := testimage.WriteFiles(&buf, files); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func archiveOf(t testing.TB, l *testimage.Layout) []byte {
	t.Helper()
	files, err := l.Files()
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, files)
}

func docker(t testing.TB, compression string, images ...testimage.Image) map[string][]byte {
	t.Helper()
	files, err := testimage.DockerFiles(compression, images...)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// copyFile copies a file, and makes the directories that it needs.
func (w *world) copyFile(from, to string) {
	w.t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o700)
	}
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
