package content

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/powercut"
)

// afterReboot opens the store that a power cut would leave now.
func afterReboot(t *testing.T, d *powercut.Disk) *Disk {
	t.Helper()
	s, err := Open(filepath.Join(d.Cut(t).Dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.boot = "the next"
	return s
}

// fill writes p to ref, all of it if nothing is there.
func fill(t *testing.T, s *Disk, ref string, p []byte) Ingest {
	t.Helper()
	w, err := s.Ingest(context.Background(), ref, Expect{Size: int64(len(p))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	info, err := w.Status()
	if err == nil {
		_, err = w.Write(p[info.Offset:])
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestPowerCut stops the machine right after each answer: what was committed is
// there, whole; what was not is none, and can be written again.
func TestPowerCut(t *testing.T) {
	leak.Check(t)
	ctx := context.Background()
	disk := powercut.New(t)
	s, err := Open(filepath.Join(disk.Dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	afterReboot(t, disk) // an empty store stands as well

	p := bytes.Repeat([]byte("power"), 200<<10)
	for _, d := range []digest.Digest{digest.FromBytes(p), digest.SHA512.FromBytes(p)} {
		w := fill(t, s, "r", p)
		rebooted := afterReboot(t, disk)
		if names := blobs(t, rebooted); len(names) > 1 {
			t.Fatalf("before the commit: %v", names)
		}
		if info, err := rebooted.Status(ctx, "r"); err == nil && info.Offset != 0 {
			t.Errorf("bytes from before the power cut count: %+v", info)
		}
		if _, err := fill(t, rebooted, "r", p).Commit(ctx, int64(len(p)), d); err != nil {
			t.Errorf("written again: %v", err)
		}
		if _, err := w.Commit(ctx, int64(len(p)), d); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Disk{rebooted, afterReboot(t, disk)} {
			r, err := s.Open(ctx, d)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
			if err != nil || !bytes.Equal(got, p) {
				t.Errorf("%d bytes of %d, %v", len(got), len(p), err)
			}
			r.Close()
		}
	}
}

// blobs lists the files that have a name, and checks that they have a right to.
func blobs(t *testing.T, s *Disk) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.path(blobsDir), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		algorithm := digest.Algorithm(filepath.Base(filepath.Dir(path)))
		if err == nil && algorithm.FromBytes(data).Encoded() != entry.Name() {
			t.Errorf("%s has %d bytes that are not its own", path, len(data))
		}
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
