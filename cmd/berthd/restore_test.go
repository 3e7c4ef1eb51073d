package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/metadata"
)

// TestRestoreOverDamage: what is there under a blob's name stays only if it is that
// blob.
func TestRestoreOverDamage(t *testing.T) {
	root := t.TempDir()
	blobs, err := content.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blobs.Close() }()
	data := []byte("what was saved")
	d := digest.FromBytes(data)
	path := filepath.Join(root, "blobs", d.Algorithm().String(), d.Encoded())
	r := &restoring{blobs: blobs}
	for _, there := range []string{"", "what was saved", "what was sAved", "what"} {
		if there != "" {
			if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(there), 0o400)); err != nil {
				t.Fatal(err)
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: metadata.BackupBlobs + "sha256/" + d.Encoded(), Size: int64(len(data))}
		if err := r.blob(t.Context(), h, bytes.NewReader(data)); err != nil {
			t.Fatalf("over %q: %v", there, err)
		}
		blob, err := blobs.Open(t.Context(), d)
		if err != nil {
			t.Fatalf("over %q: %v", there, err)
		}
		got, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
		if err = errors.Join(err, blob.Close()); err != nil || string(got) != string(data) {
			t.Errorf("over %q: %q, %v", there, got, err)
		}
	}
	if r.count != 4 {
		t.Errorf("%d blobs are told", r.count)
	}
}
