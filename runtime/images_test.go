package runtime

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// tarOf makes a tar. An entry without a type is a file with its name as content.
func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestImages packs and unpacks, and packs the same again.
func TestImages(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	files := map[string]string{"inventory.img": "i", "pages-1.img": strings.Repeat("page", 100_000), "empty.img": "", "sub/core.img": "c"}
	if err := os.Mkdir(filepath.Join(from, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var first, second bytes.Buffer
	if err := packImages(t.Context(), from, &first); err != nil {
		t.Fatal(err)
	}
	if err := unpackImages(t.Context(), bytes.NewReader(first.Bytes()), int64(first.Len()), to); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if err := packImages(t.Context(), to, &second); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("not the same again: %v", err)
	}
	if err := os.Symlink("/etc", filepath.Join(from, "parent")); err != nil {
		t.Fatal(err)
	}
	if err := packImages(t.Context(), from, io.Discard); err == nil || !strings.Contains(err.Error(), "parent among the images is not a regular file") {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := packImages(ended, to, io.Discard); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := unpackImages(ended, bytes.NewReader(first.Bytes()), int64(first.Len()), t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestHostileImages unpacks what nobody should, and looks for what it left outside.
func TestHostileImages(t *testing.T) {
	good := tarOf(t, tar.Header{Name: "a.img"})
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"up":        {tarOf(t, tar.Header{Name: "../outside"}), "leads out"},
		"deep up":   {tarOf(t, tar.Header{Name: "a/../../outside"}), "leads out"},
		"absolute":  {tarOf(t, tar.Header{Name: "/outside"}), "leads out"},
		"link":      {tarOf(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "l/outside"}), "neither a file nor a directory"},
		"hard link": {tarOf(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}), "neither a file nor a directory"},
		"device":    {tarOf(t, tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}), "neither a file nor a directory"},
		"fifo":      {tarOf(t, tar.Header{Name: "f", Typeflag: tar.TypeFifo}), "neither a file nor a directory"},
		"twice":     {tarOf(t, tar.Header{Name: "a"}, tar.Header{Name: "./a"}), "there twice"},
		"nothing":   {tarOf(t), "no images"},
		"garbage":   {bytes.Repeat([]byte("garbage!"), 1000), "invalid argument"},
		"cut off":   {good[:514], "unexpected EOF"},
		"file, dir": {tarOf(t, tar.Header{Name: "a"}, tar.Header{Name: "a/b"}), "is there twice"},
	} {
		base := t.TempDir()
		dir := filepath.Join(base, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		err := unpackImages(t.Context(), bytes.NewReader(c.data), int64(len(c.data)), dir)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v has another kind", name, err)
		}
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
			t.Errorf("%s: outside: %v, %v", name, entries, err)
		}
	}
	// A stream that goes on after the size that was declared is not read on.
	dir := t.TempDir()
	endless := io.MultiReader(bytes.NewReader(good[:1024]), neverEnds{})
	if err := unpackImages(t.Context(), endless, 1024, dir); err != nil {
		t.Error(err)
	}
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) { panic("read beyond the size") }

// TestSparseImages refuses a file of holes that is larger than what it came in.
func TestSparseImages(t *testing.T) {
	// A PAX 0.1 sparse file: its real size is in a record, its map says that all
	// of it is a hole.
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	record := "22 GNU.sparse.major=0\n22 GNU.sparse.minor=1\n"
	for _, kv := range []string{"GNU.sparse.size=1073741824", "GNU.sparse.numblocks=1", "GNU.sparse.map=1073741824,0"} {
		record += paxRecord(kv)
	}
	if err := w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: int64(len(record))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(record)); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&tar.Header{Name: "holes.img", Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := out.Bytes()
	data[156] = tar.TypeXHeader
	fixChecksum(data[:512])
	err := unpackImages(t.Context(), bytes.NewReader(data), int64(len(data)), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "larger than the rest of the checkpoint") {
		t.Error(err)
	}
}

func paxRecord(kv string) string {
	for n := len(kv); ; n++ {
		if line := strconv.Itoa(n) + " " + kv + "\n"; len(line) == n {
			return line
		}
	}
}

// fixChecksum makes a header's checksum right again.
func fixChecksum(header []byte) {
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	octal := make([]byte, 6)
	for i := 5; i >= 0; i-- {
		octal[i], sum = byte('0'+sum%8), sum/8
	}
	copy(header[148:156], string(octal)+"\x00 ")
}

func FuzzUnpackImages(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "a.img"}, tar.Header{Name: "d", Typeflag: tar.TypeDir}))
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = unpackImages(t.Context(), bytes.NewReader(data), int64(len(data)), dir)
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
			t.Fatalf("outside: %v, %v", entries, err)
		}
	})
}
