package content

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/leak"
)

const kib = 1 << 10

// recording opens a store whose writers record hashes after few bytes.
func recordingIn(t *testing.T, root string) *Disk {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.recordEvery, s.recordMin = 256*kib, 16*kib
	return s
}

func newRecording(t *testing.T) *Disk {
	t.Helper()
	leak.Check(t)
	return recordingIn(t, filepath.Join(t.TempDir(), "store"))
}

// some gives n bytes that no other seed gives.
func some(n int, seed byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i*7>>3) ^ byte(i>>11) ^ seed
	}
	return out
}

func begin(t *testing.T, s *Disk, want Expect) *ingest {
	t.Helper()
	w, err := s.Ingest(context.Background(), "r", want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w.(*ingest)
}

// add writes p in pieces, and waits for what is recorded meanwhile.
func add(t *testing.T, w *ingest, p []byte) {
	t.Helper()
	for len(p) > 0 {
		n, err := w.Write(p[:min(len(p), 64*kib)])
		if err == nil {
			err = w.settle()
		}
		if err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
}

// copyOf copies the directory of a store, as a killed process would leave it.
func copyOf(t *testing.T, s *Disk) *Disk {
	t.Helper()
	root := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(root, os.DirFS(s.root)); err != nil {
		t.Fatal(err)
	}
	return recordingIn(t, root)
}

// standsOn fails the test unless w stands after p, and has read back as much.
func standsOn(t *testing.T, w *ingest, p []byte, read int64) {
	t.Helper()
	if w.offset != int64(len(p)) || w.Digest() != w.algorithm.FromBytes(p) {
		t.Fatalf("stands at %d as %s, want %d bytes", w.offset, w.Digest(), len(p))
	}
	if w.read != read {
		t.Errorf("read back %d bytes of %d, want %d", w.read, len(p), read)
	}
}

// finish adds the rest and commits, and compares what is stored.
func finish(t *testing.T, s *Disk, w *ingest, rest, all []byte, want digest.Digest) {
	t.Helper()
	add(t, w, rest)
	info, err := w.Commit(context.Background(), int64(len(all)), want)
	if err != nil {
		t.Fatal(err)
	}
	if info.Digest.Algorithm().FromBytes(all) != info.Digest {
		t.Errorf("committed as %s", info.Digest)
	}
	r, err := s.Open(context.Background(), info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestResumeReadsNothing goes on with ingests that were let go, or whose process
// was killed: what was recorded is not read again.
func TestResumeReadsNothing(t *testing.T) {
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		t.Run(algorithm.String(), func(t *testing.T) {
			s := newRecording(t)
			p := some(1000*kib, 1)
			want := Expect{Digest: algorithm.FromBytes(p)}
			w := begin(t, s, want)
			add(t, w, p[:700*kib])

			killed := copyOf(t, s)
			k := begin(t, killed, want)
			// Two records were made meanwhile, the last one after 640 KiB: the
			// first that a piece has got beyond twice as many as are due.
			standsOn(t, k, p[:700*kib], int64(700*kib)-k.record.Size)
			if k.record.Size < 500*kib {
				t.Errorf("recorded at %d", k.record.Size)
			}
			finish(t, killed, k, p[700*kib:], p, want.Digest)

			for _, at := range []int{700 * kib, 730 * kib, 735 * kib} {
				add(t, w, p[w.offset:at])
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				w = begin(t, s, want)
				standsOn(t, w, p[:at], int64(at)-w.record.Size)
				if w.read >= s.recordMin {
					t.Errorf("resumed at %d, read back %d bytes", at, w.read)
				}
			}
			finish(t, s, w, p[735*kib:], p, want.Digest)
		})
	}
}

// TestLargeResume is the same with the sizes that a daemon has.
func TestLargeResume(t *testing.T) {
	s := newRecording(t)
	s.recordEvery, s.recordMin = defaultRecordEvery, defaultRecordMin
	p := some(80<<20, 1)
	w := begin(t, s, Expect{})
	add(t, w, p[:70<<20])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = begin(t, s, Expect{})
	if w.read > defaultRecordMin {
		t.Errorf("read back %d bytes of %d", w.read, w.offset)
	}
	finish(t, s, w, p[70<<20:], p, digest.FromBytes(p))
}

// TestRecordGoesFirst replaces bytes that a record stands for.
func TestRecordGoesFirst(t *testing.T) {
	for _, to := range []int{0, 100 * kib, 300 * kib} {
		s := newRecording(t)
		p, q := some(600*kib, 1), some(600*kib, 2)
		w := begin(t, s, Expect{})
		add(t, w, p)
		if w.record.Size == 0 {
			t.Fatal("nothing is recorded")
		}
		if err := w.Truncate(int64(to)); err != nil {
			t.Fatal(err)
		}
		all := append(bytes.Clone(p[:to]), q[to:]...)
		for at := to; at < len(all); at += 100 * kib {
			add(t, w, all[at:at+100*kib])
			k := begin(t, copyOf(t, s), Expect{})
			standsOn(t, k, all[:at+100*kib], int64(at+100*kib)-k.record.Size)
		}
		finish(t, s, w, nil, all, "")
	}
}

// TestOtherAlgorithm: a record of another algorithm's is of no use, and goes
// with the bytes that it stands for all the same.
func TestOtherAlgorithm(t *testing.T) {
	s := newRecording(t)
	p, q := some(600*kib, 1), some(600*kib, 2)
	w := begin(t, s, Expect{})
	add(t, w, p)
	w.Close()
	w = begin(t, s, Expect{Digest: digest.SHA512.FromBytes(p)})
	standsOn(t, w, p, int64(len(p)))
	if err := w.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(q); err != nil {
		t.Fatal(err)
	}
	k := begin(t, copyOf(t, s), Expect{Digest: digest.FromBytes(q)})
	if k.algorithm != digest.SHA256 || k.Digest() != digest.FromBytes(q) {
		t.Errorf("the hash of other bytes: %s", k.Digest())
	}
}

// TestWrongRecord: no record has bytes committed under a name that is not
// theirs, nor keeps them from theirs.
func TestWrongRecord(t *testing.T) {
	p := some(600*kib, 1)
	d := digest.FromBytes(p)
	for name, change := range map[string]func(r *record){
		"as it is":  func(*record) {},
		"torn":      func(r *record) { r.State = r.State[:50] },
		"too long":  func(r *record) { r.Size = 1 << 30; r.Sum = r.sum() },
		"bad sum":   func(r *record) { r.State[20] ^= 1 },
		"bad state": func(r *record) { r.State[20] ^= 1; r.Sum = r.sum() },
		"no state":  func(r *record) { r.State = []byte("x"); r.Sum = r.sum() },
		"bad size":  func(r *record) { r.Size -= 64; r.Sum = r.sum() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newRecording(t)
			w := begin(t, s, Expect{})
			add(t, w, p[:500*kib])
			w.Close()
			path := s.path(filepath.Join(refDir("r"), recordFile))
			data, err := os.ReadFile(path)
			var r record
			if err = errors.Join(err, json.Unmarshal(data, &r)); err != nil {
				t.Fatal(err)
			}
			change(&r)
			if data, err = json.Marshal(r); err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			unsaid := copyOf(t, s)
			finish(t, unsaid, begin(t, unsaid, Expect{}), p[500*kib:], p, "")
			w = begin(t, s, Expect{})
			add(t, w, p[500*kib:])
			if _, err := w.Commit(context.Background(), 0, digest.FromString("other")); err == nil {
				t.Error("committed as something else")
			}
			finish(t, s, w, nil, p, d)
		})
	}
}
