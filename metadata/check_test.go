package metadata

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata/rows"
)

// TestCheckFindsDamage does one kind of damage after another, and undoes it by
// a sweep or by hand.
func TestCheckFindsDamage(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	native := w.snapshotter(s, "native")
	d := w.blob(s, "data", nil)
	w.layer(native, "base", "", nil)
	w.layer(native, "top", "base", nil)
	blobFile := filepath.Join(w.dir, "content", "blobs", "sha256", d.Encoded())
	dirOf := func(name string) string {
		row := &rows.Snapshot{}
		w.must(w.View(func(tx *Tx) (err error) {
			row, err = snapshotTable.Get(tx, "ns", path("native", name))
			return err
		}))
		return filepath.Join(w.dir, "native", string(rune('0'+row.Id)))
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for p := range w.Check(bg, CheckOptions{ReadContent: true}) {
			got = append(got, p.String())
		}
		slices.Sort(got)
		if len(got) != len(want) {
			t.Fatalf("got %q\nwant %q", got, want)
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("got %q\nwant %q", got[i], want[i])
			}
		}
	}
	expect()

	data, err := os.ReadFile(blobFile)
	w.must(err)
	replace := func(data string) {
		w.must(os.Remove(blobFile))
		w.must(os.WriteFile(blobFile, []byte(data), 0o444))
	}
	replace("tada")
	expect("its bytes have another digest")
	replace("longer data")
	expect("11 bytes on disk, and 4 by its row", "another digest")
	w.must(os.Remove(blobFile))
	expect("its bytes are not on disk")
	w.must(os.WriteFile(blobFile, data, 0o444))
	expect()

	w.must(os.Rename(dirOf("top"), filepath.Join(w.dir, "native", "77")))
	expect(`snapshot "77": this directory of native has no row`, "is not there")
	w.must(os.Rename(filepath.Join(w.dir, "native", "77"), dirOf("top")))
	expect()

	stray := filepath.Join(w.dir, "content", "blobs", "sha256", strings.Repeat("a", 64))
	w.must(os.WriteFile(stray, nil, 0o444))
	ingest, err := w.disk.Ingest(bg, "ns/99/lost", content.Expect{})
	w.must(err)
	w.must(ingest.Close())
	w.must(os.Mkdir(filepath.Join(w.dir, "native", "78"), 0o700))
	expect(`blob "sha256:aaaa`, `ingest "ns/99/lost"`, `snapshot "78"`)
	w.must(w.Sweep(bg))
	expect()

	writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{})
	w.must(err)
	w.must(writer.Close())
	w.must(w.disk.Abort(bg, writer.hold.backend))
	expect(`ingest "r" of namespace "ns": its bytes`)
	w.must(w.Sweep(bg))
	expect()

	w.damageRows(t, expect, d.String())
}

// damageRows changes rows on file, looks, and changes them back.
func (w *world) damageRows(t *testing.T, expect func(...string), d string) {
	t.Helper()
	type change struct {
		bucket, key string
		value       []byte
		want        []string
	}
	top := &rows.Snapshot{}
	w.must(w.View(func(tx *Tx) (err error) {
		top, err = snapshotTable.Get(tx, "ns", path("native", "top"))
		return err
	}))
	bytesOf := func(m proto.Message) []byte {
		value, err := proto.Marshal(m)
		w.must(err)
		return value
	}
	other := proto.CloneOf(top)
	other.Info.Name, other.Id = "other", top.Id
	for _, c := range []change{
		{"snapshots", "ns\x00native\x00base", nil, []string{`directory of native has no row`, `"top" of namespace "ns": its parent "base" does not exist`}},
		{"children", "ns\x00native\x00base\x00top", nil, []string{`missing from the children`}},
		{"children", "ns\x00native\x00base\x00ghost", []byte{}, []string{`"ghost" of namespace "ns": it is counted`}},
		{"snapshots", "ns\x00native\x00other", bytesOf(other), []string{`missing from the children`, `its directory`}},
		{"namespaces", "ns", nil, []string{"", "", ""}},
		{"namespaces", "ns", []byte("\xff"), []string{`database "ns"`}},
		{"held", "ns\x00ghost\x00content\x00x", []byte{}, []string{`lease "ghost"`}},
		{"blobs", "ns\x00nodigest", bytesOf(&contentapi.Info{}), []string{"named by no digest"}},
		{"blobs", "ns\x00" + d, nil, []string{"no row names them"}},
	} {
		var old []byte
		put := func(value []byte) {
			w.close()
			w.onFile(func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte(c.bucket))
				if v := b.Get([]byte(c.key)); v != nil && old == nil {
					old = append([]byte{}, v...)
				}
				if value == nil {
					return b.Delete([]byte(c.key))
				}
				return b.Put([]byte(c.key), value)
			})
			w.open()
		}
		put(c.value)
		expect(c.want...)
		put(old)
		expect()
	}
}
