// Package contenttest owns the tests that every content.Store has to pass. It
// does not test how a store keeps its bytes.
package contenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
)

// Store is a store under test. Reopen closes it and opens it again, as a new
// process would.
type Store interface {
	content.Store
	Reopen(t *testing.T)
}

// Run runs the suite. open gives an empty store, which it closes when the test
// ends.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"Commit":       testCommit,
		"Algorithms":   testAlgorithms,
		"Resume":       testResume,
		"OneWriter":    testOneWriter,
		"Truncate":     testTruncate,
		"Mismatch":     testMismatch,
		"Exists":       testExists,
		"OtherTotal":   testOtherTotal,
		"Abort":        testAbort,
		"Delete":       testDelete,
		"BadArguments": testBadArguments,
		"Refs":         testRefs,
		"Closed":       testClosed,
		"Cancelled":    testCancelled,
		"SameAtOnce":   testSameAtOnce,
		"ManyAtOnce":   testManyAtOnce,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

var ctx = context.Background()

// Bytes gives n bytes that differ by seed.
func Bytes(n int, seed byte) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{seed})
	r.Read(p)
	return p
}

// Begin opens an ingest, or fails the test.
func Begin(t *testing.T, s content.Store, ref string, want content.Expect) content.Ingest {
	t.Helper()
	w, err := s.Ingest(ctx, ref, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// Add commits p under ref, or fails the test.
func Add(t *testing.T, s content.Store, ref string, p []byte) digest.Digest {
	t.Helper()
	w := Begin(t, s, ref, content.Expect{})
	put(t, w, p)
	info, err := w.Commit(ctx, int64(len(p)), digest.FromBytes(p))
	if err != nil {
		t.Fatal(err)
	}
	return info.Digest
}

// Holds fails the test unless the store has exactly p under its digest d.
func Holds(t *testing.T, s content.Store, d digest.Digest, p []byte) {
	t.Helper()
	info, err := s.Stat(ctx, d)
	if err != nil || info.Size != int64(len(p)) || info.Digest != d || info.CreatedAt.IsZero() {
		t.Fatalf("stat: %+v, %v; want %d bytes", info, err, len(p))
	}
	r, err := s.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()+1))
	if err != nil || !bytes.Equal(got, p) || r.Size() != int64(len(p)) {
		t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(p))
	}
}

func put(t *testing.T, w content.Ingest, p []byte) {
	t.Helper()
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(p), err)
	}
}

func stands(t *testing.T, w content.Ingest, p []byte) {
	t.Helper()
	info, err := w.Status()
	if err != nil || info.Offset != int64(len(p)) {
		t.Fatalf("status: %+v, %v; want offset %d", info, err, len(p))
	}
	if got := w.Digest(); got != got.Algorithm().FromBytes(p) {
		t.Fatalf("digest of %d bytes is %s", len(p), got)
	}
}

func is(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%v; want %v", err, kind)
	}
}

// absent fails the test if there is an ingest of ref.
func absent(t *testing.T, s content.Store, ref string) {
	t.Helper()
	_, err := s.Status(ctx, ref)
	is(t, err, errdefs.ErrNotFound)
	for info, err := range s.Ingests(ctx) {
		if err != nil || info.Ref == ref {
			t.Fatalf("listed: %+v, %v", info, err)
		}
	}
}

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

func testBadArguments(t *testing.T, s Store) {
	for _, d := range []digest.Digest{"", "x", "sha256:", "sha256:zz", "sha256:../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e",
		digest.Digest("sha256:" + strings.Repeat("A", 64))} {
		_, err := s.Stat(ctx, d)
		is(t, err, errdefs.ErrInvalidArgument)
		_, err = s.Open(ctx, d)
		is(t, err, errdefs.ErrInvalidArgument)
		is(t, s.Delete(ctx, d), errdefs.ErrInvalidArgument)
	}
	_, err := s.Stat(ctx, digest.FromString("unknown"))
	is(t, err, errdefs.ErrNotFound)
	_, err = s.Ingest(ctx, "", content.Expect{})
	is(t, err, errdefs.ErrInvalidArgument)
	_, err = s.Status(ctx, "unknown")
	is(t, err, errdefs.ErrNotFound)
}

func testRefs(t *testing.T, s Store) {
	refs := map[string]bool{}
	for _, ref := range []string{"a", "A", "a/b", "../../../a", "/", ".", "..", "a\x00b", "\xff\xfe", "layer-sha256:abc", "ns/1/with space\n", strings.Repeat("x", 5000)} {
		w := Begin(t, s, ref, content.Expect{})
		put(t, w, []byte(ref))
		w.Close()
		refs[ref] = true
	}
	s.Reopen(t)
	for info, err := range s.Ingests(ctx) {
		if err != nil || !refs[info.Ref] || info.Offset != int64(len(info.Ref)) {
			t.Fatalf("%+v, %v", info, err)
		}
		delete(refs, info.Ref)
	}
	if len(refs) > 0 {
		t.Fatalf("not listed: %v", refs)
	}
}

func testClosed(t *testing.T, s Store) {
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, []byte("x"))
	if _, err := w.Commit(ctx, 0, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.Write([]byte("y"))
	is(t, err, errdefs.ErrFailedPrecondition)
	_, err = w.Commit(ctx, 0, "")
	is(t, err, errdefs.ErrFailedPrecondition)
	is(t, w.Truncate(0), errdefs.ErrFailedPrecondition)
	_, err = w.Status()
	is(t, err, errdefs.ErrFailedPrecondition)
	// Closing the old one must not end the hold of a new one.
	again := Begin(t, s, "r", content.Expect{})
	w.Close()
	_, err = s.Ingest(ctx, "r", content.Expect{})
	is(t, err, errdefs.ErrUnavailable)
	again.Close()
}

func testCancelled(t *testing.T, s Store) {
	w := Begin(t, s, "r", content.Expect{})
	put(t, w, []byte("x"))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.Commit(ended, 0, "")
	is(t, err, context.Canceled)
	w.Close()
	_, err = s.Ingest(ended, "r", content.Expect{})
	is(t, err, context.Canceled)
	w = Begin(t, s, "r", content.Expect{}) // no hold is left
	stands(t, w, []byte("x"))
}

// testSameAtOnce commits the same bytes under many refs: one wins, the others
// learn that the blob exists, and by then it does.
func testSameAtOnce(t *testing.T, s Store) {
	p := Bytes(200<<10, 1)
	d := digest.FromBytes(p)
	var writers []content.Ingest
	for i := range 8 {
		w := Begin(t, s, fmt.Sprint(i), content.Expect{})
		put(t, w, p)
		writers = append(writers, w)
	}
	results := make([]error, len(writers))
	var group sync.WaitGroup
	for i, w := range writers {
		group.Go(func() {
			_, results[i] = w.Commit(ctx, int64(len(p)), d)
			if _, err := s.Stat(ctx, d); err != nil {
				t.Errorf("after a commit that answered %v: %v", results[i], err)
			}
		})
	}
	group.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d commits succeeded", won)
	}
	Holds(t, s, d, p)
}

// testManyAtOnce writes, lists and deletes different blobs at the same time.
func testManyAtOnce(t *testing.T, s Store) {
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			p := Bytes(100<<10+i, byte(i))
			w, err := s.Ingest(ctx, fmt.Sprint(i), content.Expect{Size: int64(len(p))})
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			for rest := p; len(rest) > 0; rest = rest[min(len(rest), 40<<10):] {
				if _, err := w.Write(rest[:min(len(rest), 40<<10)]); err != nil {
					t.Error(err)
				}
			}
			if _, err := w.Commit(ctx, int64(len(p)), digest.FromBytes(p)); err != nil {
				t.Error(err)
			}
			for _, err := range s.All(ctx) {
				if err != nil {
					t.Error(err)
				}
			}
			for _, err := range s.Ingests(ctx) {
				if err != nil {
					t.Error(err)
				}
			}
			if i%2 == 0 {
				if err := s.Delete(ctx, digest.FromBytes(p)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	count := 0
	for range s.All(ctx) {
		count++
	}
	if count != 4 {
		t.Errorf("%d blobs left", count)
	}
}
