package counted

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReader(t *testing.T) {
	var told []int64
	r := &Reader{R: iotest.DataErrReader(strings.NewReader("abcde")), Tell: func(n int64) { told = append(told, n) }}
	buf := make([]byte, 3)
	for {
		if _, err := r.Read(buf); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
	}
	if r.N != 5 || !slices.Equal(told, []int64{3, 5}) {
		t.Errorf("%d bytes, told %v", r.N, told)
	}
	silent := &Reader{R: strings.NewReader("abc")}
	if data, err := io.ReadAll(silent); err != nil || string(data) != "abc" || silent.N != 3 {
		t.Errorf("%q of %d bytes, %v", data, silent.N, err)
	}
}

func TestWriter(t *testing.T) {
	var out bytes.Buffer
	w := &Writer{W: &out}
	for _, s := range []string{"ab", "", "cde"} {
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
	if w.N != 5 || out.String() != "abcde" {
		t.Errorf("%d bytes: %q", w.N, out.String())
	}
	short := &Writer{W: half{}}
	if n, err := short.Write([]byte("abcd")); n != 2 || err == nil || short.N != 2 {
		t.Errorf("%d bytes, %v, counted %d", n, err, short.N)
	}
}

// half takes half of what it is given.
type half struct{}

func (half) Write(p []byte) (int, error) { return len(p) / 2, io.ErrShortWrite }
