// Package contenttest owns the tests that every content.Store has to pass. It
// does not test how a store keeps its bytes.
package contenttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
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
