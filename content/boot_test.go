package content

import (
	"context"
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
