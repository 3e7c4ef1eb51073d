package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata/rows"
)

// registry is a Fetcher with blobs of its own.
type registry map[digest.Digest]string

func (r registry) Fetch(_ context.Context, host, repository string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, ok := r[desc.Digest]
	if host != "reg.example" || repository != "team/app" || !ok {
		return nil, fmt.Errorf("%s/%s: %w", host, repository, errdefs.ErrNotFound)
	}
	return io.NopCloser(strings.NewReader(data)), nil
}

// repair has the store repaired and gives what it says, one line a problem.
func (w *world) repair(r Repair) []string {
	w.t.Helper()
	release, err := w.HoldCollections(bg)
	w.must(err)
	defer release()
	var said []string
	for p := range w.Check(bg, CheckOptions{ReadContent: true, Repair: &r}) {
		if p.Repaired == "" {
			w.t.Errorf("not repaired: %v: %s", p, p.Failed)
		}
		said = append(said, p.String()+" → "+p.Repaired)
	}
	slices.Sort(said)
	return said
}

func (w *world) blobFile(d digest.Digest) string {
	return filepath.Join(w.dir, "content", "blobs", d.Algorithm().String(), d.Encoded())
}

func (w *world) layerDir(ns, name string) string {
	row := &rows.Snapshot{}
	w.must(w.View(func(tx *Tx) (err error) {
		row, err = snapshotTable.Get(tx, ns, path("native", name))
		return err
	}))
	return filepath.Join(w.dir, "native", fmt.Sprint(row.Id))
}

// TestRepairBlobs damages blobs in every way: those that came from a registry
// come back with their rows and labels, the others go with their rows.
func TestRepairBlobs(t *testing.T) {
	for _, damage := range []struct {
		name string
		do   func(w *world, file, data string) error
	}{
		{"missing", func(_ *world, file, _ string) error { return os.Remove(file) }},
		{"flipped", func(w *world, file, data string) error {
			bad := []byte(data)
			bad[len(bad)/2] ^= 1
			return errors.Join(os.Remove(file), os.WriteFile(file, bad, 0o444))
		}},
		{"short", func(_ *world, file, data string) error {
			return errors.Join(os.Chmod(file, 0o644), os.Truncate(file, int64(len(data)/2)))
		}},
		{"empty", func(_ *world, file, _ string) error { return os.Truncate(file, 0) }},
		{"a directory", func(_ *world, file, _ string) error {
			return errors.Join(os.Remove(file), os.Mkdir(file, 0o700), os.WriteFile(filepath.Join(file, "x"), nil, 0o600))
		}},
	} {
		t.Run(damage.name, func(t *testing.T) {
			w := newWorld(t)
			a, b := Scope{Namespace: "a"}, Scope{Namespace: "b"}
			from := map[string]string{labels.DistributionSource + "reg.example": "other/thing,team/app", labels.GCRoot: "1"}
			known := w.blob(a, "from a registry", from)
			w.blob(b, "from a registry", map[string]string{labels.GCRoot: "1"})
			lost := w.blob(a, "from nowhere", map[string]string{labels.GCRoot: "1"})
			kept := w.blob(b, "whole", map[string]string{labels.GCRoot: "1"})
			w.must(damage.do(w, w.blobFile(known), "from a registry"))
			w.must(damage.do(w, w.blobFile(lost), "from nowhere"))

			said := w.repair(Repair{Fetch: registry{known: "from a registry"}})
			text := strings.Join(said, "\n")
			if !strings.Contains(text, "fetched again from reg.example/team/app") || !strings.Contains(text, "dropped (no registry is recorded") {
				t.Errorf("said %s", text)
			}
			w.mustBeClean()
			for _, s := range []Scope{a, b} {
				r, err := w.Blobs(s).Open(bg, known)
				w.must(err)
				data, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
				if err = errors.Join(err, r.Close()); err != nil || string(data) != "from a registry" {
					t.Errorf("%s: %q, %v", s.Namespace, data, err)
				}
			}
			info, err := w.Blobs(a).Info(bg, known)
			if err != nil || info.Labels[labels.DistributionSource+"reg.example"] == "" {
				t.Errorf("%v, %v", info, err)
			}
			if _, err := w.Blobs(a).Info(bg, lost); !errdefs.IsNotFound(err) {
				t.Errorf("of the one that nothing brings back: %v", err)
			}
			w.blob(a, "from nowhere", nil) // it can be brought in again
			w.must(second(w.Blobs(b).Info(bg, kept)))
			if _, err := os.Stat(w.options.Path + BeforeRepair); err != nil {
				t.Errorf("no copy of before: %v", err)
			}
		})
	}
}

// TestRepairFetchLies: what a registry sends is taken only if it is the blob.
func TestRepairFetchLies(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	from := map[string]string{labels.DistributionSource + "reg.example": "team/app", labels.GCRoot: "1"}
	for _, lie := range []string{"tada", "dat", strings.Repeat("data", 1000), ""} {
		d := w.blob(s, "data", from)
		w.must(os.Remove(w.blobFile(d)))
		said := w.repair(Repair{Fetch: registry{d: lie}})
		if len(said) != 1 || !strings.Contains(said[0], "dropped") {
			t.Errorf("%.10q: %q", lie, said)
		}
		w.mustBeClean()
		for info, err := range w.disk.Ingests(bg) {
			t.Errorf("left: %v, %v", info, err)
		}
	}
}

// TestRepairSize: bytes that are right win over a row that is not.
func TestRepairSize(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	d := w.blob(s, "data", nil)
	w.must(w.Update(bg, func(tx *Tx) error {
		row, err := blobTable.Get(tx, "ns", d.String())
		row.Size = 77
		return errors.Join(err, blobTable.Update(tx, "ns", d.String(), row))
	}))
	if said := w.repair(Repair{}); len(said) != 1 || !strings.Contains(said[0], "its rows have their size now") {
		t.Errorf("%q", said)
	}
	w.mustBeClean()
}

// TestRepairStrays puts files and directories where nothing of that name belongs.
func TestRepairStrays(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	w.blob(s, "data", nil)
	writer, err := w.Blobs(s).Writer(bg, "half", content.Expect{})
	w.must(err)
	w.must(second(writer.Write([]byte("half of it"))))
	strays := []string{
		"blobs/sha256/readme", "blobs/sha256/dir", "blobs/md5/x", "blobs/file", "lost+found/y", "notes.txt",
		"ingest/file", "ingest/0123/data", "blobs/sha256/" + strings.Repeat("b", 64) + "/z",
	}
	for _, name := range strays {
		file := filepath.Join(w.dir, "content", name)
		if filepath.Base(name) == "dir" {
			w.must(os.Mkdir(file, 0o700))
			continue
		}
		w.must(os.MkdirAll(filepath.Dir(file), 0o700))
		w.must(os.WriteFile(file, []byte("x"), 0o600))
	}
	stray := w.blobFile(digest.FromString("no row"))
	w.must(os.WriteFile(stray, []byte("no row"), 0o444))
	w.must(os.Mkdir(filepath.Join(w.dir, "native", "99"), 0o700))

	if said := w.repair(Repair{}); len(said) != len(strays)+2 {
		t.Errorf("%d problems: %s", len(said), strings.Join(said, "\n"))
	}
	w.mustBeClean()
	for _, name := range append(strays, "native/99") {
		if _, err := os.Lstat(filepath.Join(w.dir, "content", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The writer was not disturbed.
	w.must(second(writer.Write([]byte(", and the rest"))))
	w.must(writer.Commit(bg, 0, digest.FromString("half of it, and the rest"), nil))
}

// TestRepairIngests: what is left of uploads goes, bytes without a row and a row
// without bytes alike.
func TestRepairIngests(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	for _, ref := range []string{"no bytes", "no state", "whole"} {
		writer, err := w.Blobs(s).Writer(bg, ref, content.Expect{})
		w.must(err)
		w.must(second(writer.Write([]byte(ref))))
		backend := writer.hold.backend
		w.must(writer.Close())
		switch ref {
		case "no bytes":
			w.must(w.disk.Abort(bg, backend))
		case "no state":
			found, err := filepath.Glob(filepath.Join(w.dir, "content", "ingest", "*", "ref"))
			w.must(err)
			for _, file := range found {
				if data, _ := os.ReadFile(file); string(data) == backend {
					w.must(os.Remove(filepath.Join(filepath.Dir(file), "state.json")))
				}
			}
		}
	}
	w.repair(Repair{})
	w.mustBeClean()
	left, err := w.Blobs(s).ListStatuses(bg)
	if err != nil || len(left) != 1 || left[0].Ref != "whole" || left[0].Offset != 5 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestRepairSnapshots takes directories away: layers are made anew, what was
// written is lost and said, and nothing loses what it stands on.
func TestRepairSnapshots(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	w.layer(native, "base", "", nil)
	w.layer(native, "top", "base", nil)
	w.layer(native, "other", "", nil)
	w.must(second(native.Prepare(bg, "container", "top", nil)))
	w.must(second(native.Prepare(bg, "written", "", nil)))
	for _, name := range []string{"base", "written", "other"} {
		w.must(os.Remove(w.layerDir("ns", name)))
	}
	made := 0
	layer := func(ctx context.Context, ns, snapshotter, name string) error {
		if name != "base" {
			return fmt.Errorf("no image has it as a layer: %w", errdefs.ErrNotFound)
		}
		made++
		sn := w.snapshotter(Scope{Namespace: ns}, snapshotter)
		if _, err := sn.Prepare(ctx, "again", "", nil); err != nil {
			return err
		}
		return sn.Replace(ctx, name, "again")
	}
	said := strings.Join(w.repair(Repair{Layer: layer}), "\n")
	for _, want := range []string{`"base" of namespace "ns": its directory 1 of native is not there → unpacked again`, `"written"`, `"other"`, "its row is dropped"} {
		if !strings.Contains(said, want) {
			t.Errorf("not said: %s\nsaid %s", want, said)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
	w.mustBeClean()
	for name, there := range map[string]bool{"base": true, "top": true, "container": true, "written": false, "other": false, "again": false} {
		if _, err := native.Stat(bg, name); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A layer that nothing brings back is kept while something stands on it.
	w.must(os.Remove(w.layerDir("ns", "base")))
	for p := range w.Check(bg, CheckOptions{Repair: &Repair{}}) {
		if p.Failed == "" || p.Object != "base" {
			t.Errorf("%v: %s, %s", p, p.Repaired, p.Failed)
		}
	}
	w.must(layer(bg, "ns", "native", "base"))
}

// TestReplaceInUse: the directories of a layer that may be mounted stay.
func TestReplaceInUse(t *testing.T) {
	w := newWorld(t)
	native := w.snapshotter(Scope{Namespace: "ns"}, "native")
	w.layer(native, "base", "", nil)
	w.layer(native, "top", "base", nil)
	w.must(second(native.Prepare(bg, "container", "top", nil)))
	w.must(second(native.Prepare(bg, "again", "", nil)))
	err := native.Replace(bg, "base", "again")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"container" stands on it`) {
		t.Errorf("%v", err)
	}
	w.must(native.Remove(bg, "container"))
	before := w.layerDir("ns", "base")
	w.must(native.Replace(bg, "base", "again"))
	if after := w.layerDir("ns", "base"); after == before {
		t.Errorf("it is %s still", after)
	}
	w.restart()
	if _, err := os.Stat(before); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old directory: %v", err)
	}
	native = w.snapshotter(Scope{Namespace: "ns"}, "native")
	for name, want := range map[string]string{"unknown": "not_found", "top": "failed_precondition"} {
		if err := native.Replace(bg, name, "base"); result(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRepairRows damages rows one after another, and has all of them put right.
func TestRepairRows(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	d := w.blob(s, "data", map[string]string{labels.GCRoot: "1"})
	w.layer(native, "base", "", nil)
	w.layer(native, "top", "base", nil)
	w.must(second(w.Containers(s).Create(bg, testContainer("c"))))
	w.must(second(w.Images(s).Create(bg, testImage("i", d), nil)))
	for _, c := range []struct {
		bucket, key string
		value       []byte
	}{
		{"containers", "ns\x00c", []byte("\xff\xff")},
		{"images", "ns\x00i", []byte("\x0a\xff")},
		{"children", "ns\x00native\x00base\x00top", nil},
		{"children", "ns\x00native\x00base\x00ghost", []byte{}},
		{"namespaces", "ns", nil},
		{"namespaces", "ns", []byte("\xff")},
		{"held", "ns\x00ghost\x00content\x00x", []byte{}},
		{"blobs", "ns\x00nodigest", []byte{}},
		{"blobs", "ns\x00" + d.String(), []byte("\xff")},
		{"blobs", "nothing", []byte{}},
		{"snapshots", "ns\x00native\x00top", []byte("\xff")},
		{"ingests", "ns\x00half", []byte("\xff")},
	} {
		w.close()
		w.onFile(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte(c.bucket))
			if c.value == nil {
				return b.Delete([]byte(c.key))
			}
			return b.Put([]byte(c.key), c.value)
		})
		w.open()
		if said := w.repair(Repair{}); len(said) == 0 {
			t.Errorf("%s %q: nothing was found", c.bucket, c.key)
		}
		w.mustBeClean()
	}
	if info, err := w.Blobs(s).Info(bg, d); err != nil || info.Size != 4 || !proto.Equal(info, &contentapi.Info{
		Digest: info.Digest, Size: info.Size, CreatedAt: info.CreatedAt, UpdatedAt: info.UpdatedAt,
	}) {
		t.Errorf("%v, %v", info, err)
	}
	w.must(second(w.snapshotter(s, "native").Stat(bg, "base")))
	w.must(second(w.Collect(bg)))
}

// TestCheckReferences: what refers to what is gone is noted, and is no damage.
func TestCheckReferences(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	gone := digest.FromString("gone")
	w.blob(s, "data", map[string]string{
		labels.GCRefContent + ".x": gone.String(), labels.GCRefManifest + "0": digest.FromString("other platform").String(), labels.GCRoot: "1",
	})
	w.must(second(w.Images(s).Create(bg, testImage("i", gone), nil)))
	c := testContainer("c")
	c.Snapshotter, c.SnapshotKey = "native", "nowhere"
	w.must(second(w.Containers(s).Create(bg, c)))
	var notes []string
	for p := range w.Check(bg, CheckOptions{References: true, Repair: &Repair{}}) {
		if !p.Note || p.Failed != "" || p.Repaired != "" {
			t.Errorf("%+v", p)
		}
		notes = append(notes, p.String())
	}
	slices.Sort(notes)
	for i, want := range []string{`blob "sha256:`, `container "c"`, `image "i"`} {
		if len(notes) != 3 || !strings.HasPrefix(notes[i], want) || !strings.Contains(notes[i], "gone") {
			t.Fatalf("%q", notes)
		}
	}
	if _, err := os.Stat(w.options.Path + BeforeRepair); err == nil {
		t.Error("there was nothing to repair, but a copy was made")
	}
}
