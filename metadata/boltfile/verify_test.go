package boltfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// build makes a file with branches, long values, inline and nested buckets.
func build(t testing.TB, noFreelistSync bool) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: noFreelistSync, FreelistType: bolt.FreelistMapType, NoGrowSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("many"))
			if err != nil {
				return err
			}
			for i := range 3000 {
				key := fmt.Appendf(nil, "key %d", (i*7919)%3000)
				if (i+round)%3 == 0 {
					err = b.Delete(key)
				} else {
					err = b.Put(key, bytes.Repeat([]byte{byte(i)}, i%400))
				}
				if err != nil {
					return err
				}
			}
			small, err := tx.CreateBucketIfNotExists([]byte("small"))
			if err == nil {
				err = small.Put([]byte("a"), []byte("b"))
			}
			if err == nil {
				err = b.Put([]byte("long"), make([]byte, 100_000))
			}
			if err != nil {
				return err
			}
			nested, err := b.CreateBucketIfNotExists([]byte("nested"))
			if err != nil {
				return err
			}
			return nested.Put([]byte("x"), make([]byte, 5000))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func verify(data []byte) error { return Verify(bytes.NewReader(data), int64(len(data))) }

func TestWhole(t *testing.T) {
	for _, noFreelistSync := range []bool{true, false} {
		data := build(t, noFreelistSync)
		if err := verify(data); err != nil {
			t.Error(err)
		}
		// Without one meta page the other counts, and what it refers to has not
		// been written over yet.
		for page := range 2 {
			cut := bytes.Clone(data)
			clear(cut[page*4096 : page*4096+4096])
			if err := verify(cut); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestAgreesWithBolt: what Verify lets through bbolt can read, all of it,
// whatever was done to the file.
func TestAgreesWithBolt(t *testing.T) {
	whole := build(t, true)
	random := rand.New(rand.NewPCG(3, 4))
	path := filepath.Join(t.TempDir(), "db")
	refused := 0
	for n := range 400 {
		data := bytes.Clone(whole)
		page := 4096 * random.IntN(len(data)/4096)
		within := 200 // elements; keys are behind them
		if n%2 == 0 {
			within = 4096
		}
		for range 1 + random.IntN(6) {
			data[page+random.IntN(within)] ^= 1 << random.IntN(8)
		}
		if verify(data) != nil {
			refused++
			continue
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				t.Error(err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		db.NoSync = true
		err = db.Update(func(tx *bolt.Tx) error { // every page is written anew
			return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
				for i := range 3000 {
					key := fmt.Appendf(nil, "key %d", i)
					if b.Get(key) == nil {
						continue
					}
					if err := b.Put(key, []byte("new")); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if refused < 50 {
		t.Errorf("only %d refused", refused)
	}
}

// TestFirstKeys: whatever is put and deleted, bbolt keeps the first key of a page
// in the page above, and so do the files that Verify lets through. One that does
// not would have bbolt panic at a write.
func TestFirstKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 6))
	for round := range 200 {
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("rows"))
			if err != nil {
				return err
			}
			from := random.IntN(3000)
			for n := range 1 + random.IntN(200) {
				key := fmt.Appendf(nil, "key %04d", (from+n)%3000)
				if (round/10)%2 == 0 {
					err = b.Put(key, make([]byte, random.IntN(300)))
				} else {
					err = b.Delete(key)
				}
				if err != nil {
					return err
				}
			}
			for c, n := b.Cursor(), 0; n < 2; n++ { // the very first ones
				if k, _ := c.First(); k != nil && round%3 == 0 {
					if err := c.Delete(); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(data); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFirstKeyDamaged changes the first key of every leaf to the one behind it,
// which is mostly still in order.
func TestFirstKeyDamaged(t *testing.T) {
	whole := build(t, true)
	refused := 0
	for at := 2 * 4096; at < len(whole); at += 4096 {
		if order.Uint16(whole[at+8:]) != flagLeaf || order.Uint16(whole[at+10:]) == 0 {
			continue
		}
		data := bytes.Clone(whole)
		clear(data[at : at+headerSize])
		if verify(data) == nil {
			continue // nothing reaches it
		}
		data = bytes.Clone(whole)
		element := data[at+headerSize:]
		key := element[order.Uint32(element[4:]):][:order.Uint32(element[8:])]
		if !bytes.HasPrefix(key, []byte("key ")) {
			continue
		}
		key[len(key)-1]++
		if err := verify(data); err == nil {
			t.Errorf("page %d: its first key was changed", at/4096)
		}
		refused++
	}
	if refused < 50 {
		t.Errorf("only %d leaves", refused)
	}
}

// TestSalvage: of a whole file all rows are read, of a damaged one all but those
// of the page that is damaged, and it is told which bucket that was.
func TestSalvage(t *testing.T) {
	whole := build(t, true)
	count := func(data []byte) (n int, lost map[string]error) {
		lost, err := Salvage(bytes.NewReader(data), int64(len(data)), func(bucket string, key, _ []byte) {
			if bucket == "many" && bytes.HasPrefix(key, []byte("key ")) {
				n++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return n, lost
	}
	all, lost := count(whole)
	if all < 1000 || len(lost) > 0 {
		t.Fatalf("%d rows, lost %v", all, lost)
	}
	damaged, nested := 0, 0
	for at := 2 * 4096; at < len(whole); at += 4096 {
		if order.Uint16(whole[at+8:]) != flagLeaf {
			continue
		}
		data := bytes.Clone(whole)
		clear(data[at : at+headerSize])
		if verify(data) == nil {
			continue // nothing reaches it
		}
		n, lost := count(data)
		if n == all && len(lost) == 0 {
			nested++ // of a bucket within a bucket, which is not read
			continue
		}
		damaged++
		if n < all-100 && lost[""] == nil || len(lost) != 1 {
			t.Errorf("page %d: %d rows of %d, lost %v", at/4096, n, all, lost)
		}
	}
	if damaged < 20 || nested > 2 {
		t.Errorf("%d pages, %d of nested buckets", damaged, nested)
	}
}

func TestCutOff(t *testing.T) {
	whole := build(t, true)
	for _, size := range []int{0, 1, 80, 4095, 4096, 8192, len(whole) / 3} {
		if err := verify(whole[:size]); err == nil {
			t.Errorf("%d of %d bytes are whole", size, len(whole))
		}
	}
}

func FuzzVerify(f *testing.F) {
	whole := build(f, false)
	f.Add(uint32(0), []byte{1})
	f.Add(uint32(4096*2+16), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, noise []byte) {
		data := bytes.Clone(whole)
		copy(data[int(at)%len(data):], noise)
		_ = verify(data)
		_, _ = Salvage(bytes.NewReader(data), int64(len(data)), func(string, []byte, []byte) {})
	})
}

// TestSalvageFlags: a row whose flags are damaged is one that is lost, and said to be.
func TestSalvageFlags(t *testing.T) {
	whole := build(t, true)
	found := false
	for at := 2 * 4096; at < len(whole); at += 4096 {
		if order.Uint16(whole[at+8:]) != flagLeaf || order.Uint16(whole[at+10:]) < 3 {
			continue
		}
		data := bytes.Clone(whole)
		order.PutUint32(data[at+headerSize+2*elementSize:], 0x170000)
		if verify(data) == nil {
			continue // nothing reaches it
		}
		found = true
		n := 0
		lost, err := Salvage(bytes.NewReader(data), int64(len(data)), func(string, []byte, []byte) { n++ })
		if err != nil || len(lost) == 0 {
			t.Errorf("page %d: %d rows, lost %v, %v", at/4096, n, lost, err)
		}
	}
	if !found {
		t.Error("no page was damaged")
	}
}
