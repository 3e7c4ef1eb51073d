package attach

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

// TestFrames reads what was written, in frames that are not too long.
func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	w := NewWriter(&wire)
	big := bytes.Repeat([]byte("0123456789"), 10_000)
	at := time.Unix(1700000000, 42).UTC()
	for _, frame := range []struct {
		kind Kind
		data []byte
	}{{Stdout, []byte("out")}, {Stderr, big}, {EndInput, nil}, {Exit, EncodeExit(137, at)}, {Resize, EncodeSize(80, 24)}} {
		if err := w.Write(frame.kind, frame.data); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&wire)
	var kinds []Kind
	var stderr []byte
	for {
		kind, data, err := r.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, kind)
		switch kind {
		case Stderr:
			stderr = append(stderr, data...)
		case Exit:
			if status, when, err := DecodeExit(data); status != 137 || !when.Equal(at) || err != nil {
				t.Error(status, when, err)
			}
		case Resize:
			if columns, rows, err := DecodeSize(data); columns != 80 || rows != 24 || err != nil {
				t.Error(columns, rows, err)
			}
		}
	}
	if want := []Kind{Stdout, Stderr, Stderr, EndInput, Exit, Resize}; !bytes.Equal(bytesOf(kinds), bytesOf(want)) {
		t.Errorf("kinds %v, want %v", kinds, want)
	}
	if !bytes.Equal(stderr, big) {
		t.Errorf("%d bytes came through", len(stderr))
	}
}

func bytesOf(kinds []Kind) []byte {
	out := make([]byte, len(kinds))
	for i, k := range kinds {
		out[i] = byte(k)
	}
	return out
}

// FuzzRead wants an error or a frame of what anybody may send, in bounded memory.
func FuzzRead(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 1, 'x'})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{3, 0, 0, 0, 12, 1})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire))
		for {
			kind, data, err := r.Read()
			if err != nil {
				if errors.Is(err, io.EOF) && len(data) > 0 {
					t.Error("data beside an error")
				}
				return
			}
			if len(data) > MaxData {
				t.Errorf("%d bytes", len(data))
			}
			_, _, _ = DecodeExit(data)
			_, _, _ = DecodeSize(data)
			_ = kind
		}
	})
}
