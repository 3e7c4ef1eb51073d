package archive

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestACL maps ids of users and groups, and leaves alone what has none or is no
// list.
func TestACL(t *testing.T) {
	d := &differ{o: DiffOptions{Owner: func(uid, gid int) (int, int) { return uid - 100, gid - 200 }}}
	entry := func(tag byte, id byte, high byte) string { return string([]byte{tag, 0, 6, 0, id, high, 0, 0}) }
	head := "\x02\x00\x00\x00"
	for given, want := range map[string]string{
		head: head,
		head + entry(2, 105, 0) + entry(8, 207, 0): head + entry(2, 5, 0) + entry(8, 7, 0),
		head + entry(1, 105, 0):                    head + entry(1, 105, 0),
		head + "short":                             head + "short",
		"\x01\x00\x00\x00" + entry(2, 105, 0):      "\x01\x00\x00\x00" + entry(2, 105, 0),
		"":                                         "",
		"x":                                        "x",
	} {
		if got := d.acl(given); got != want {
			t.Errorf("%x became %x, want %x", given, got, want)
		}
	}
	if same := (&differ{}).acl(head + entry(2, 105, 0)); same != head+entry(2, 105, 0) {
		t.Errorf("without a mapping: %x", same)
	}
}

// TestWriteBlocks: what is zero becomes holes, all else is where it belongs.
func TestWriteBlocks(t *testing.T) {
	block := len(zeros)
	x := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
	for name, parts := range map[string][][]byte{
		"holes between":  {x(block), make([]byte, 3*block), x(10)},
		"only holes":     {make([]byte, 5*block+1)},
		"no hole":        {x(3*block + 7)},
		"zeros within":   {append(x(100), make([]byte, block)...), x(block)},
		"a hole at last": {x(2 * block), make([]byte, block/2)},
	} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Join(parts, nil)
		if err := f.Truncate(int64(len(want))); err != nil {
			t.Fatal(err)
		}
		if err := writeBlocks(int(f.Fd()), want, 0); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || name == "only holes" && st.Blocks != 0 {
			t.Errorf("%s: %d blocks, %v", name, st.Blocks, err)
		}
		f.Close()
	}
}
