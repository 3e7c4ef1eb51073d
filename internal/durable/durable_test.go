package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplacesWhole(t *testing.T) {
	for name, write := range map[string]func(string, string, []byte, os.FileMode) error{
		"durable": WriteFile, "volatile": WriteVolatile,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			for _, text := range []string{"first", "second, longer", "3"} {
				if err := write("test", path, []byte(text), 0o640); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || string(got) != text {
					t.Fatalf("read %q, %v; want %q", got, err, text)
				}
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o640 {
				t.Fatalf("mode %v, %v", info.Mode(), err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Fatalf("left behind: %v", entries)
			}
			if err := write("test", filepath.Join(dir, "no", "f"), nil, 0o600); err == nil {
				t.Fatal("a missing directory is no error")
			}
		})
	}
}

func TestMkdirAllAndRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		if err := MkdirAll("test", dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Remove("test", dir); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll("test", filepath.Join(file, "d"), 0o700); err == nil {
		t.Fatal("a file on the way is no error")
	}
}
