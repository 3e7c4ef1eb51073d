package events

import (
	"bytes"
	"os"
	"testing"
)

// FuzzUnseal: no bytes make the decoder do more than refuse them, and what it
// accepts is what seal would have written.
func FuzzUnseal(f *testing.F) {
	record := append(make([]byte, headerLen), "body"...)
	seal(record, 7)
	f.Add(record)
	f.Add(record[:headerLen])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		number, body, length, err := unseal(data)
		if err != nil {
			return
		}
		again := append(make([]byte, headerLen), body...)
		seal(again, number)
		if !bytes.Equal(again, data[:length]) {
			t.Errorf("%x is read as %d %x", data, number, body)
		}
	})
}

// FuzzOpen: whatever the last segment holds, the journal opens, keeps a prefix
// of it, and works.
func FuzzOpen(f *testing.F) {
	record := append(make([]byte, headerLen), "\x12\x01n"...)
	seal(record, 1000)
	f.Add(append([]byte(magic), record...))
	f.Add([]byte(magic))
	f.Add([]byte("berthev"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(segmentPath(dir, 1000), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j := openAt(t, dir, 0)
		defer j.Close()
		live := subscribe(t, j, 0)
		publish(t, j, "new")
		expect(t, live, "new")
		if oldest, newest := j.Bounds(); oldest < 1000 || newest < oldest {
			t.Errorf("bounds %d, %d", oldest, newest)
		}
	})
}
