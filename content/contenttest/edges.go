package contenttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
)

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
