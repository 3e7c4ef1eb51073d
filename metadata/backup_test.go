package metadata

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/leak"
)

// filled is a world with something of everything.
func filled(t *testing.T) (*world, []digest.Digest) {
	leak.CheckProcess(t)
	w := newWorldIn(t, t.TempDir())
	var blobs []digest.Digest
	for n := range 40 {
		s := Scope{Namespace: fmt.Sprint("ns", n%2)}
		d := w.blob(s, fmt.Sprint("blob ", n), map[string]string{labels.GCRoot: strings.Repeat("x", 300)})
		blobs = append(blobs, d)
		w.must(second(w.Images(s).Create(bg, testImage(fmt.Sprint("image", n), d), nil)))
		w.must(second(w.Containers(s).Create(bg, testContainer(fmt.Sprint("c", n)))))
	}
	native := w.snapshotter(Scope{Namespace: "ns0"}, "native")
	w.layer(native, "base", "", map[string]string{labels.GCRoot: "1"})
	w.layer(native, "top", "base", map[string]string{labels.GCRoot: "1"})
	return w, blobs
}

func (w *world) names() string {
	var all []string
	for _, ns := range []string{"ns0", "ns1"} {
		s := Scope{Namespace: ns}
		i, err := w.Images(s).List(bg)
		w.must(err)
		for _, row := range i {
			all = append(all, ns+"/"+row.Name)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestBackup: a copy made while others write opens, is of one moment, and holds
// the blobs if asked for.
func TestBackup(t *testing.T) {
	w, blobs := filled(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				// Always both or none of them.
				err := w.Update(bg, func(tx *Tx) error {
					return errors.Join(containerTable.Create(tx, "ns0", fmt.Sprint("a", n), testContainer(fmt.Sprint("a", n))),
						containerTable.Create(tx, "ns1", fmt.Sprint("b", n), testContainer(fmt.Sprint("b", n))))
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for range 5 {
		var plain bytes.Buffer
		w.must(w.Backup(bg, &plain, false))
		file := filepath.Join(t.TempDir(), "meta.db")
		w.must(os.WriteFile(file, plain.Bytes(), 0o600))
		w.must(VerifyFile(file))
		counts := map[string]int{}
		w.eachRowOf(file, func(bucket, key string) {
			if bucket == "containers" {
				_, id, _ := cut(key)
				counts[id[:1]]++
			}
		})
		if counts["a"] != counts["b"] || counts["c"] != 40 {
			t.Errorf("%v", counts)
		}
	}
	close(stop)
	<-done
	var whole bytes.Buffer
	w.must(w.Backup(bg, &whole, true))
	found := map[string]int64{}
	for r := tar.NewReader(&whole); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		w.must(err)
		data, err := io.ReadAll(r)
		w.must(err)
		found[h.Name] = int64(len(data))
		if hex, ok := strings.CutPrefix(h.Name, BackupBlobs+"sha256/"); ok && digest.FromBytes(data).Encoded() != hex {
			t.Errorf("%s has other bytes", h.Name)
		}
	}
	if len(found) != len(blobs)+1 || found[BackupDatabase] == 0 {
		t.Errorf("%v", found)
	}
	w.mustBeClean()
	w.close()
}

func (w *world) eachRowOf(file string, visit func(bucket, key string)) {
	w.t.Helper()
	o := w.options
	o.Path = file
	db, err := Open(bg, o)
	w.must(err)
	w.must(db.View(func(tx *Tx) error {
		for _, bucket := range buckets {
			for key := range tx.scan(bucket, "") {
				visit(bucket, string(key))
			}
		}
		return nil
	}))
	w.must(db.Close())
}

// TestMissingDatabase: a store whose database is gone does not start empty, as
// that would have everything removed.
func TestMissingDatabase(t *testing.T) {
	w, blobs := filled(t)
	w.must(w.DB.Close())
	for _, leave := range []func() error{
		func() error { return os.Remove(w.options.Path) },
		func() error { return os.WriteFile(w.options.Path, nil, 0o600) },
	} {
		w.must(leave())
		_, err := Open(bg, w.options)
		if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), w.options.Path) || !strings.Contains(err.Error(), "berthd fsck --repair") {
			t.Fatalf("%v", err)
		}
	}
	w.must(w.disk.Close())
	w.rebuild(t)
	if got := w.names(); got != "" {
		t.Errorf("%s", got)
	}
	for _, d := range blobs {
		info, err := w.Blobs(Scope{Namespace: "saved"}).Info(bg, d)
		if err != nil || info.Size < 6 {
			t.Errorf("%v, %v", info, err)
		}
	}
	sn := w.snapshotter(Scope{Namespace: "saved"}, "native")
	for _, name := range []string{"lost-1", "lost-2"} {
		if _, err := sn.Mounts(bg, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := w.collect(); r.Content+r.Snapshots != 0 {
		t.Errorf("collected: %+v", r)
	}
	w.mustBeClean()
	w.close()
}

// anew makes a layer that was lost.
func (w *world) anew(ctx context.Context, ns, snapshotter, name string) error {
	sn, err := w.Snapshotter(Scope{Namespace: ns}, snapshotter)
	if err != nil {
		return err
	}
	if _, err := sn.Prepare(ctx, "anew "+name, "", nil); err != nil {
		return err
	}
	return sn.Commit(ctx, name, "anew "+name, "", nil)
}

// rebuild makes a database of what is left, and looks whether all is in order.
func (w *world) rebuild(t *testing.T) Rebuilt {
	t.Helper()
	out, err := Rebuild(w.options)
	if err != nil {
		t.Fatal(err)
	}
	w.open()
	for p := range w.Check(bg, CheckOptions{RowsOnly: true, Repair: &Repair{}}) {
		if p.Repaired == "" {
			t.Errorf("not repaired: %v: %s", p, p.Failed)
		}
	}
	if _, _, err := w.Adopt(bg, "saved"); err != nil {
		t.Fatal(err)
	}
	w.repair(Repair{Layer: w.anew})
	w.mustBeClean()
	if _, err := Rebuild(w.options); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a whole one: %v", err)
	}
	return out
}

// told repairs, and wants each problem to be repaired or the reason said why it can't
// be: noise within a row may make it another one.
func (w *world) told(t *testing.T) {
	t.Helper()
	for p := range w.Check(bg, CheckOptions{Repair: &Repair{Layer: w.anew}}) {
		if p.Repaired == "" && p.Failed == "" {
			t.Errorf("neither repaired nor given up: %v", p)
		}
	}
}

// TestTornDatabase damages the file in many places: opening it never panics, a
// refusal names file and way out, and a rebuild brings back every row with the
// copy that is kept beside it.
func TestTornDatabase(t *testing.T) {
	w, blobs := filled(t)
	last, err := w.generation(bg, -1)
	w.must(err)
	if again, err := w.generation(bg, last); err != nil || again != last {
		t.Errorf("%d, %v", again, err)
	}
	// Newer than the copy, and lost if the rows of images are.
	s := Scope{Namespace: "ns0"}
	w.must(second(w.Images(s).Create(bg, testImage("newer", blobs[0]), nil)))
	want := w.names()
	w.must(w.DB.Close())
	good, err := os.ReadFile(w.options.Path)
	w.must(err)
	pages := 0
	for n := range good {
		if n%4096 == 0 && !bytes.Equal(good[n:n+4096], make([]byte, 4096)) {
			pages++
		}
	}
	damage := map[string]func(data []byte) []byte{
		"cut":    func(data []byte) []byte { return data[:len(data)/3] },
		"zeroes": func(data []byte) []byte { clear(data[8<<10 : pages<<11]); return data },
		"metas":  func(data []byte) []byte { clear(data[:8<<10]); return data },
		"text":   func([]byte) []byte { return []byte("this is no database") },
	}
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 60 {
		damage[fmt.Sprint("page ", n)] = func(data []byte) []byte {
			at := (2 + r.IntN(pages-2)) << 12
			for range 1 + r.IntN(64) {
				data[at+r.IntN(4096)] = byte(r.IntN(256))
			}
			return data
		}
	}
	torn := 0
	for _, name := range slices.Sorted(maps.Keys(damage)) { // the same damage each time
		do := damage[name]
		w.must(os.WriteFile(w.options.Path, do(bytes.Clone(good)), 0o600))
		db, err := Open(bg, w.options)
		if err == nil { // a page that nothing reaches, or within a value: rows tell
			w.DB = db
			w.told(t)
			w.must(w.DB.Close())
			continue
		}
		torn++
		if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), w.options.Path) || !strings.Contains(err.Error(), "berthd fsck --repair") {
			t.Fatalf("%s: %v", name, err)
		}
		w.must(w.disk.Close())
		out, err := Rebuild(w.options)
		if err != nil {
			t.Fatal(err)
		}
		w.open()
		w.told(t)
		if _, _, err := w.Adopt(bg, "saved"); err != nil {
			t.Fatal(err)
		}
		w.told(t)
		got := w.names()
		if got != want && strings.ReplaceAll(want, " ns0/newer", "") != got {
			t.Errorf("%s: %+v\nhas %s\nof %s", name, out, got, want)
		}
		if out.Aside == "" || out.Rows+out.Copied < 100 {
			t.Errorf("%s: %+v", name, out)
		}
		w.must(w.DB.Close())
	}
	if torn < 10 {
		t.Errorf("only %d of %d were found out at the start", torn, len(damage))
	}
	t.Logf("%d of %d were found out at the start", torn, len(damage))
	w.must(w.disk.Close())
}

// TestRebuildCutOff: a rebuild that was cut off when the new database was whole,
// and not in its place yet, is ended by the next one.
func TestRebuildCutOff(t *testing.T) {
	w, _ := filled(t)
	want := w.names()
	w.must(w.DB.Close())
	w.must(os.Rename(w.options.Path, w.options.Path+rebuiltEnd))
	w.must(w.disk.Close())
	w.rebuild(t)
	if got := w.names(); got != want {
		t.Errorf("has %s\nof %s", got, want)
	}
	w.close()
}
