package metadata

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata/rows"
)

// onFile changes the database behind the back of the program that has it
// closed.
func (w *world) onFile(fn func(tx *bolt.Tx) error) {
	w.t.Helper()
	file, err := bolt.Open(w.options.Path, 0o600, nil)
	w.must(err)
	w.must(file.Update(fn))
	w.must(file.Close())
}

func TestNewerSchemaIsRefused(t *testing.T) {
	w := newWorld(t)
	w.must(w.DB.Close())
	set := func(version uint32) {
		w.onFile(func(tx *bolt.Tx) error {
			value, err := proto.Marshal(&rows.Schema{Version: version})
			if err != nil {
				return err
			}
			return tx.Bucket([]byte(schemaBucket)).Put([]byte(schemaKey), value)
		})
	}
	set(SchemaVersion + 6)
	db, err := Open(bg, w.options)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "version 7") || !strings.Contains(err.Error(), "up to 1") {
		t.Errorf("%v, %v", db, err)
	}
	set(SchemaVersion)
	w.must(w.disk.Close())
	w.open()
}

func TestOpenTwice(t *testing.T) {
	w := newWorld(t)
	if _, err := Open(bg, w.options); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
}

func TestOpenNowhere(t *testing.T) {
	w := newWorld(t)
	o := w.options
	o.Path = filepath.Join(w.dir, "missing", "meta.db")
	if _, err := Open(bg, o); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
}

// TestDamagedFile damages the file in many ways: each time there is an answer,
// and never a panic that ends the process.
func TestDamagedFile(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	for i := range 200 {
		c := testContainer("c" + strings.Repeat("x", i%40) + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		c.Spec.Value = make([]byte, 100+i*20)
		w.must(second(w.Containers(s).Create(bg, c)))
	}
	w.close()
	whole, err := os.ReadFile(w.options.Path)
	w.must(err)
	inUse := len(bytes.TrimRight(whole, "\x00")) // behind it is what is set aside
	whole = whole[:(inUse+4095)/4096*4096]
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	try := func(what string, data []byte) {
		t.Helper()
		w.must(os.WriteFile(w.options.Path, data, 0o600))
		w.disk, err = content.Open(filepath.Join(w.dir, "content"))
		w.must(err)
		defer func() { w.must(w.disk.Close()) }()
		w.options.Content = w.disk
		db, err := Open(bg, w.options)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), w.options.Path) || !errdefs.IsDataLoss(err) {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		// What got through must not hurt the process either.
		_, _ = db.Containers(s).List(bg)
		_ = second(db.Containers(s).Create(bg, testContainer("new")))
		for range db.Check(bg, CheckOptions{}) {
		}
		_ = db.Close()
	}
	for _, size := range []int{1, 100, 4096, 8192, 20000, len(whole) / 2} {
		try("cut off", whole[:size])
	}
	for i := range 60 {
		data := append([]byte(nil), whole...)
		page := 4096 * random.IntN(len(data)/4096)
		what := "zero page"
		switch i % 3 {
		case 0:
			clear(data[page : page+4096])
		case 1:
			what = "noise"
			for j := range 64 {
				data[page+j] = byte(random.Uint32())
			}
		default:
			what = "flipped"
			for range 8 {
				data[page+random.IntN(256)] ^= 1 << random.IntN(8)
			}
		}
		try(what, data)
	}
	if refused < 20 {
		t.Errorf("only %d refused", refused)
	}
	w.must(os.WriteFile(w.options.Path, whole, 0o600))
	w.open()
}

// TestUnreadableRow: one bad row is reported by name and takes nothing with it.
func TestUnreadableRow(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	w.must(second(w.Containers(s).Create(bg, testContainer("good"))))
	w.must(second(w.Containers(s).Create(bg, testContainer("bad"))))
	w.close()
	w.onFile(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("containers")).Put([]byte("ns\x00bad"), []byte("\x0a\xff\xff"))
	})
	w.open()
	if _, err := w.Containers(s).Get(bg, "bad"); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), `"bad"`) {
		t.Error(err)
	}
	w.must(second(w.Containers(s).Get(bg, "good")))
	if _, err := w.Collect(bg); !errdefs.IsDataLoss(err) {
		t.Errorf("what an unreadable row keeps alive is unknown: %v", err)
	}
	var found []string
	for p := range w.Check(bg, CheckOptions{}) {
		found = append(found, p.String())
	}
	if len(found) != 1 || !strings.Contains(found[0], `container "bad" of namespace "ns": its row can't be read`) {
		t.Error(found)
	}
	w.must(w.Containers(s).Delete(bg, "bad"))
}
