package content

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// TestOtherBoot begins an ingest anew whose bytes are from before a reboot: a
// power cut may have taken any of them.
func TestOtherBoot(t *testing.T) {
	ctx := context.Background()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write := func() {
		w, err := s.Ingest(ctx, "r", Expect{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	write()
	s.boot = "another"
	if info, err := s.Status(ctx, "r"); err != nil || info.Offset != 0 {
		t.Errorf("%+v, %v", info, err)
	}
	write()
	if info, err := s.Status(ctx, "r"); err != nil || info.Offset != 5 {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestTornIngests: what a power cut leaves of ingests whose small files were not
// on disk yet is removed at the next open; nobody would find it otherwise.
func TestTornIngests(t *testing.T) {
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "store")
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"no ref", "empty ref", "no state", "empty state", "whole"} {
		w, err := s.Ingest(ctx, ref, Expect{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(root, refDir(ref))
		switch ref {
		case "no ref":
			err = os.Remove(filepath.Join(dir, refFile))
		case "empty ref":
			err = os.Truncate(filepath.Join(dir, refFile), 0)
		case "no state":
			err = os.Remove(filepath.Join(dir, stateFile))
		case "empty state":
			err = os.Truncate(filepath.Join(dir, stateFile), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(root); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	left, err := os.ReadDir(filepath.Join(root, ingestDir))
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(refDir("whole")) {
		t.Errorf("%v, %v", left, err)
	}
}
