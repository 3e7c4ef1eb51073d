package sys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, size := range []int{0, 1, 1023, 1024, 1025, 1 << 20} {
		data := bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadFile(path, size); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %d, %v", size, len(got), err)
		}
		if _, err := ReadFile(path, size-1); size > 0 && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes, one too many: %v", size, err)
		}
	}
	if _, err := ReadFile(path+"none", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := ReadFile(filepath.Dir(path), 1); err == nil {
		t.Error("a directory was read")
	}
	want, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile("/proc/self/mountinfo", 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a file of /proc: %d bytes of %d, %v", len(got), len(want), err)
	}
}
