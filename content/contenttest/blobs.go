package contenttest

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
)

func testCommit(t *testing.T, s Store) {
	for _, size := range []int{0, 1, 4096, 32 << 10, 3<<20 + 17} {
		p := Bytes(size, 1)
		w := Begin(t, s, "r", content.Expect{Size: int64(size)})
		stands(t, w, nil)
		for rest := p; len(rest) > 0; {
			n := min(len(rest), 1<<20)
			put(t, w, rest[:n])
			rest = rest[n:]
		}
		stands(t, w, p)
		d := digest.FromBytes(p)
		info, err := w.Commit(ctx, int64(size), d)
		if err != nil || info.Digest != d || info.Size != int64(size) {
			t.Fatalf("%+v, %v", info, err)
		}
		Holds(t, s, d, p)
		absent(t, s, "r")
	}
	s.Reopen(t)
	count := 0
	for info, err := range s.All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		Holds(t, s, info.Digest, Bytes(int(info.Size), 1))
		count++
	}
	if count != 5 {
		t.Fatalf("%d blobs", count)
	}
}

func testAlgorithms(t *testing.T, s Store) {
	p := Bytes(100, 1)
	d512 := digest.SHA512.FromBytes(p)
	w := Begin(t, s, "known", content.Expect{Digest: d512})
	put(t, w, p)
	stands(t, w, p)
	if w.Digest() != d512 {
		t.Fatalf("digest while writing: %s", w.Digest())
	}
	if _, err := w.Commit(ctx, 0, d512); err != nil {
		t.Fatal(err)
	}
	Holds(t, s, d512, p)

	// Said only at the end: hashed again.
	q := Bytes(2<<20, 2)
	w = Begin(t, s, "late", content.Expect{})
	put(t, w, q)
	_, err := w.Commit(ctx, 0, d512)
	is(t, err, errdefs.ErrFailedPrecondition)
	if _, err := w.Commit(ctx, 0, digest.SHA512.FromBytes(q)); err != nil {
		t.Fatal(err)
	}
	Holds(t, s, digest.SHA512.FromBytes(q), q)
	_, err = s.Stat(ctx, digest.FromBytes(q))
	is(t, err, errdefs.ErrNotFound)

	// One that is none does not matter before the commit.
	w = Begin(t, s, "bad", content.Expect{Digest: "sha256:zz"})
	put(t, w, Bytes(1, 3))
	_, err = w.Commit(ctx, 0, "sha256:zz")
	is(t, err, errdefs.ErrFailedPrecondition)
	if _, err := w.Commit(ctx, 0, ""); err != nil {
		t.Fatal(err)
	}
}

func testResume(t *testing.T, s Store) {
	p := Bytes(3<<20, 1)
	half := len(p) / 2
	w := Begin(t, s, "r", content.Expect{Size: int64(len(p))})
	started, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	put(t, w, p[:half])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.Reopen(t)
	info, err := s.Status(ctx, "r")
	if err != nil || info.Offset != int64(half) || info.Total != int64(len(p)) || !info.StartedAt.Equal(started.StartedAt) {
		t.Fatalf("%+v, %v", info, err)
	}
	// The algorithm may be another one than that of the first writer.
	w = Begin(t, s, "r", content.Expect{Digest: digest.SHA512.FromBytes(p)})
	stands(t, w, p[:half])
	if info, err = w.Status(); err != nil || info.Total != int64(len(p)) || info.UpdatedAt.Before(info.StartedAt) {
		t.Fatalf("%+v, %v", info, err)
	}
	w.Close()
	w = Begin(t, s, "r", content.Expect{Digest: digest.FromBytes(p)})
	stands(t, w, p[:half])
	put(t, w, p[half:])
	if _, err := w.Commit(ctx, int64(len(p)), digest.FromBytes(p)); err != nil {
		t.Fatal(err)
	}
	Holds(t, s, digest.FromBytes(p), p)
	absent(t, s, "r")
}

func testOneWriter(t *testing.T, s Store) {
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, []byte("one"))
	_, err := s.Ingest(ctx, "r", content.Expect{})
	is(t, err, errdefs.ErrUnavailable)
	if !strings.Contains(err.Error(), "locked") {
		t.Errorf("the text does not say locked: %v", err)
	}
	is(t, s.Abort(ctx, "r"), errdefs.ErrUnavailable)
	other := Begin(t, s, "other", content.Expect{})
	put(t, other, []byte("two"))
	stands(t, w, []byte("one"))
	w.Close()
	again := Begin(t, s, "r", content.Expect{})
	stands(t, again, []byte("one"))
}

func testTruncate(t *testing.T, s Store) {
	p := Bytes(2<<20, 1)
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, p)
	for _, size := range []int{len(p), len(p) - 5, 1 << 20, 7, 0} {
		if err := w.Truncate(int64(size)); err != nil {
			t.Fatal(err)
		}
		stands(t, w, p[:size])
	}
	is(t, w.Truncate(1), errdefs.ErrOutOfRange)
	is(t, w.Truncate(-1), errdefs.ErrOutOfRange)
	put(t, w, []byte("short"))
	if _, err := w.Commit(ctx, 5, ""); err != nil {
		t.Fatal(err)
	}
	Holds(t, s, digest.FromString("short"), []byte("short"))
}

func testMismatch(t *testing.T, s Store) {
	p := Bytes(1000, 1)
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, p)
	_, err := w.Commit(ctx, 999, "")
	is(t, err, errdefs.ErrFailedPrecondition)
	_, err = w.Commit(ctx, 0, digest.FromString("other"))
	is(t, err, errdefs.ErrFailedPrecondition)
	w.Close()
	for info, err := range s.All(ctx) {
		t.Fatalf("a blob came of it: %+v, %v", info, err)
	}
	w = Begin(t, s, "r", content.Expect{})
	stands(t, w, p)
	if _, err := w.Commit(ctx, 1000, digest.FromBytes(p)); err != nil {
		t.Fatal(err)
	}
}

func testExists(t *testing.T, s Store) {
	p := Bytes(1000, 1)
	d := Add(t, s, "first", p)
	w := Begin(t, s, "second", content.Expect{})
	put(t, w, p)
	_, err := w.Commit(ctx, 0, d)
	is(t, err, errdefs.ErrAlreadyExists)
	absent(t, s, "second")
	Holds(t, s, d, p)
	// The hold has ended.
	w = Begin(t, s, "second", content.Expect{})
	stands(t, w, nil)
}

func testOtherTotal(t *testing.T, s Store) {
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, []byte("hello"))
	w.Close()
	// A total that becomes known, or is not repeated, keeps the bytes.
	for _, want := range []content.Expect{{Size: 10}, {}, {Size: 10}} {
		w = Begin(t, s, "r", want)
		stands(t, w, []byte("hello"))
		if info, _ := w.Status(); info.Total != 10 {
			t.Fatalf("total %d", info.Total)
		}
		w.Close()
	}
	w = Begin(t, s, "r", content.Expect{Size: 11})
	stands(t, w, nil)
	if info, _ := w.Status(); info.Total != 11 {
		t.Fatalf("total %d", info.Total)
	}
}

func testAbort(t *testing.T, s Store) {
	is(t, s.Abort(ctx, "r"), errdefs.ErrNotFound)
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, []byte("hello"))
	w.Close()
	if err := s.Abort(ctx, "r"); err != nil {
		t.Fatal(err)
	}
	absent(t, s, "r")
	is(t, s.Abort(ctx, "r"), errdefs.ErrNotFound)
	w = Begin(t, s, "r", content.Expect{})
	stands(t, w, nil)
}

func testDelete(t *testing.T, s Store) {
	p := Bytes(2<<20, 1)
	d := Add(t, s, "r", p)
	r, err := s.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Delete(ctx, d); err != nil {
		t.Fatal(err)
	}
	is(t, s.Delete(ctx, d), errdefs.ErrNotFound)
	_, err = s.Stat(ctx, d)
	is(t, err, errdefs.ErrNotFound)
	_, err = s.Open(ctx, d)
	is(t, err, errdefs.ErrNotFound)
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, p) {
		t.Fatalf("the open reader got %d bytes, %v", len(got), err)
	}
	Add(t, s, "r", p)
	Holds(t, s, d, p)
}
