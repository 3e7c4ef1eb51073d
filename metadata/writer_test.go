package metadata

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
)

// fromText reads D(x), the digest of x; other text is itself.
func fromText(text string) digest.Digest {
	if x, ok := strings.CutPrefix(text, "D("); ok {
		return digest.FromString(strings.TrimSuffix(x, ")"))
	}
	return digest.Digest(text)
}

// message is one message of a Write stream in content.json.
type message struct {
	Action, Data, Expected, Ref string
	Offset, Total               int64
	Labels                      map[string]string
	Answer                      *struct {
		Digest        string
		Offset, Total int64
	}
	Error string
}

// handle does what the service does with one message (contract 4.1), as far as
// the answer tells of the store.
func handle(w *world, s Scope, writer *Writer, m message) (*Writer, *contentapi.Status, digest.Digest, error) {
	want := content.Expect{Size: m.Total, Digest: fromText(m.Expected)}
	if writer == nil {
		var err error
		if writer, err = w.Blobs(s).Writer(bg, m.Ref, want); err != nil {
			return nil, nil, "", err
		}
	} else if err := writer.Expect(bg, want); err != nil {
		return writer, nil, "", err
	}
	status, err := writer.Status()
	if err != nil || m.Action == "STAT" {
		return writer, status, writer.Digest(), err
	}
	if m.Offset > 0 && m.Offset != status.Offset {
		return writer, nil, "", errdefs.ErrOutOfRange
	}
	if m.Offset == 0 && status.Offset > 0 {
		if err := writer.Truncate(0); err != nil {
			return writer, nil, "", err
		}
	}
	if _, err := writer.Write([]byte(m.Data)); err != nil {
		return writer, nil, "", err
	}
	if status, err = writer.Status(); err != nil {
		return writer, nil, "", err
	}
	d := writer.Digest()
	if m.Action == "COMMIT" {
		err = writer.Commit(bg, m.Total, want.Digest, m.Labels)
	}
	return writer, status, d, err
}

func TestContentVectors(t *testing.T) {
	var v struct {
		IngestsLeft []string `json:"ingests_left"`
		Write       []struct {
			Name  string
			Steps []message
		}
	}
	readVectors(t, "content.json", &v)
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	busy, err := w.Blobs(s).Writer(bg, "busy", content.Expect{})
	w.must(err)
	for _, stream := range v.Write {
		var writer *Writer
		for i, m := range stream.Steps {
			var (
				status *contentapi.Status
				d      digest.Digest
				err    error
			)
			writer, status, d, err = handle(w, s, writer, m)
			got := map[string]string{"ok": "", "invalid_argument": "InvalidArgument", "already_exists": "AlreadyExists",
				"failed_precondition": "FailedPrecondition", "unavailable": "Unavailable", "out of range": "OutOfRange"}[result(err)]
			if got != m.Error || err != nil && got == "" {
				t.Errorf("%s, message %d: %v, want %q", stream.Name, i, err, m.Error)
			}
			if m.Answer == nil || err != nil {
				continue
			}
			if status.Offset != m.Answer.Offset || d != fromText(m.Answer.Digest) || m.Action == "STAT" && status.Total != m.Answer.Total {
				t.Errorf("%s, message %d: %v %s, want %+v", stream.Name, i, status, d, *m.Answer)
			}
		}
		if writer != nil {
			w.must(writer.Close())
		}
	}
	w.must(busy.Close())
	left, err := w.Blobs(s).ListStatuses(bg)
	w.must(err)
	if diff := cmp.Diff(v.IngestsLeft, keys(left, (*contentapi.Status).GetRef)); diff != "" {
		t.Error(diff)
	}
}

// offered tells whether a writer for a blob stands at its end from the start.
func offered(w *world, s Scope, data string, total int64) (*Writer, bool) {
	w.t.Helper()
	writer, err := w.Blobs(s).Writer(bg, "offer", content.Expect{Size: total, Digest: digest.FromString(data)})
	w.must(err)
	status, err := writer.Status()
	w.must(err)
	return writer, status.Offset == int64(len(data))
}

func TestSharedContent(t *testing.T) {
	w := newWorld(t)
	a, b := Scope{Namespace: "a"}, Scope{Namespace: "b"}
	d := w.blob(a, "shared", map[string]string{"x": "a"})
	w.blob(a, "keep", map[string]string{labels.GCRoot: "1"})

	if writer, ok := offered(w, b, "shared", 7); ok || writer.Close() != nil {
		t.Error("offered in spite of another size")
	}
	w.must(w.Blobs(b).Abort(bg, "offer"))

	// The bytes stay while a writer stands on them, though their last row goes.
	writer, ok := offered(w, b, "shared", 0)
	if !ok || writer.Digest() != d {
		t.Fatal("not offered")
	}
	w.must(w.Blobs(a).Delete(bg, d))
	w.collect()
	if err := writer.Commit(bg, 5, d, nil); result(err) != "failed_precondition" {
		t.Error(err)
	}
	w.must(writer.Commit(bg, 6, d, map[string]string{"x": "b"}))
	info, err := w.Blobs(b).Info(bg, d)
	if err != nil || info.Size != 6 || info.Labels["x"] != "b" {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := w.Blobs(a).Info(bg, d); result(err) != "not_found" {
		t.Error(err)
	}
	if _, err := w.Blobs(a).Open(bg, d); result(err) != "not_found" {
		t.Error(err)
	}

	// To write onto borrowed bytes copies them first.
	writer, ok = offered(w, a, "shared", 0)
	if !ok {
		t.Fatal("not offered")
	}
	w.must(second(writer.Write([]byte(" and more"))))
	if got := writer.Digest(); got != digest.FromString("shared and more") {
		t.Error(got)
	}
	w.must(writer.Commit(bg, 15, "", nil))

	// Given up, the bytes go.
	writer, ok = offered(w, a, "shared", 6)
	if !ok {
		t.Fatal("not offered")
	}
	w.must(w.Blobs(b).Delete(bg, d))
	w.collect()
	w.must(writer.Close())
	w.collect()
	if _, err := w.disk.Stat(bg, d); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestIsolatedContent(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Isolated = true })
	a, b := Scope{Namespace: "a"}, Scope{Namespace: "b"}
	w.blob(a, "shared", nil)
	writer, ok := offered(w, b, "shared", 0)
	if ok {
		t.Error("offered")
	}
	w.must(writer.Close())
	w.must(w.Blobs(b).Abort(bg, "offer"))
	w.must(second(w.Namespaces().Update(bg, &namespaces.Namespace{Name: "a", Labels: map[string]string{labels.NamespaceShareable: "true"}})))
	writer, ok = offered(w, b, "shared", 0)
	if !ok {
		t.Error("not offered")
	}
	w.must(writer.Close())
	w.must(second(writeBlob(w.DB, b, "shared", nil))) // with its bytes, at any time
}

func TestAbortTakesTheWritersIngest(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	old, err := w.Blobs(s).Writer(bg, "r", content.Expect{})
	w.must(err)
	w.must(second(old.Write([]byte("old"))))
	w.must(w.Blobs(s).Abort(bg, "r"))
	if _, err := old.Write([]byte("x")); !errors.Is(err, errdefs.ErrAborted) {
		t.Error(err)
	}
	if err := old.Commit(bg, 0, "", nil); !errors.Is(err, errdefs.ErrAborted) {
		t.Error(err)
	}
	fresh, err := w.Blobs(s).Writer(bg, "r", content.Expect{})
	w.must(err)
	w.must(second(fresh.Write([]byte("new"))))
	w.must(old.Close())
	w.must(fresh.Commit(bg, 3, digest.FromString("new"), nil))
	w.mustBeClean()
	if err := w.Blobs(s).Abort(bg, "r"); result(err) != "not_found" {
		t.Error(err)
	}
}

func TestEnd(t *testing.T) {
	w := newWorld(t)
	blobs := w.Blobs(Scope{Namespace: "ns"})
	begun := func() *Writer {
		writer, err := blobs.Writer(bg, "r", content.Expect{})
		w.must(err)
		w.must(second(writer.Write([]byte("some"))))
		return writer
	}
	left := func() int64 {
		st, err := blobs.Status(bg, "r")
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			t.Error(err)
		}
		return st.GetOffset()
	}
	late, cancel := context.WithCancel(bg)
	cancel()
	w.must(begun().End(late, true))
	if n := left(); n != 4 {
		t.Errorf("%d bytes are left of what was to be kept", n)
	}
	w.must(begun().End(late, false))
	if n := left(); n != 0 {
		t.Errorf("%d bytes are left of what was not to be kept", n)
	}
	w.must(begun().Commit(bg, 4, "", nil))
	// What another has begun under the name is not this writer's to drop.
	old := begun()
	w.must(blobs.Abort(bg, "r"))
	other := begun()
	w.must(old.End(bg, false))
	if n := left(); n != 4 {
		t.Errorf("%d bytes are left of another writer's", n)
	}
	w.must(other.End(bg, false))
}

func TestIngestsExpire(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	w.must(second(w.Leases(s).Create(bg, "l", nil)))
	for ref, scope := range map[string]Scope{"plain": s, "renewed": s, "held": s, "leased": {"ns", "l"}} {
		writer, err := w.Blobs(scope).Writer(bg, ref, content.Expect{})
		w.must(err)
		w.must(second(writer.Write([]byte(ref))))
		w.must(writer.Close())
	}
	refs := func() []string {
		all, err := w.Blobs(s).ListStatuses(bg)
		w.must(err)
		return keys(all, (*contentapi.Status).GetRef)
	}
	w.clock += 20 * time.Hour
	report := w.collect()
	if left := time.Until(report.NextExpiry) - w.clock; left < 3*time.Hour || left > 5*time.Hour {
		t.Errorf("the next ends in %v", left)
	}
	renewed, err := w.Blobs(s).Writer(bg, "renewed", content.Expect{})
	w.must(err)
	w.must(renewed.Close())
	held, err := w.Blobs(s).Writer(bg, "held", content.Expect{})
	w.must(err)
	w.clock += 10 * time.Hour
	if report = w.collect(); report.Ingests != 1 {
		t.Errorf("%+v", report)
	}
	if got := refs(); !slices.Equal(got, []string{"held", "leased", "renewed"}) {
		t.Error(got)
	}
	w.clock += 20 * time.Hour
	w.must(w.Leases(s).Delete(bg, "l"))
	w.collect()
	if got := refs(); !slices.Equal(got, []string{"held"}) {
		t.Error(got)
	}
	w.must(held.Close())
	w.collect()
	if got := refs(); len(got) != 0 {
		t.Error(got)
	}
}

func TestExpectedContentOfAnIngestStays(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{Digest: digest.FromString("x")})
	w.must(err)
	w.must(writer.Close())
	w.blob(s, "x", nil) // by another, without a lease
	w.collect()
	w.must(second(w.Blobs(s).Info(bg, digest.FromString("x"))))
	w.must(w.Blobs(s).Abort(bg, "r"))
	w.collect()
	if _, err := w.Blobs(s).Info(bg, digest.FromString("x")); result(err) != "not_found" {
		t.Error(err)
	}
}

func TestResume(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{Size: 10})
	w.must(err)
	w.must(second(writer.Write([]byte("01234"))))
	if _, err := w.Blobs(s).Writer(bg, "r", content.Expect{}); result(err) != "unavailable" || !strings.Contains(err.Error(), "locked") {
		t.Error(err)
	}
	if _, err := w.Blobs(Scope{Namespace: "other"}).Status(bg, "r"); result(err) != "not_found" {
		t.Error(err)
	}
	w.must(writer.Close())
	for size, want := range map[int64]int64{0: 5, 10: 5, 11: 0} {
		writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{Size: size})
		w.must(err)
		status, err := writer.Status()
		if err != nil || status.Offset != want {
			t.Errorf("resumed for %d bytes: %v, %v; want offset %d", size, status, err, want)
		}
		w.must(writer.Truncate(0))
		w.must(second(writer.Write([]byte("01234"))))
		w.must(writer.Close())
		writer, err = w.Blobs(s).Writer(bg, "r", content.Expect{Size: 10}) // for the next
		w.must(err)
		w.must(writer.Truncate(0))
		w.must(second(writer.Write([]byte("01234"))))
		w.must(writer.Close())
	}
}

func TestRestartKeepsIngests(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{Size: 10})
	w.must(err)
	w.must(second(writer.Write([]byte("01234"))))
	w.must(writer.Close())
	w.restart()
	writer, err = w.Blobs(s).Writer(bg, "r", content.Expect{Size: 10})
	w.must(err)
	status, err := writer.Status()
	if err != nil || status.Offset != 5 {
		t.Errorf("%v, %v", status, err)
	}
	// A power cut takes what was never flushed.
	w.must(writer.Close())
	w.close()
	w.must(os.RemoveAll(w.dir + "/content/ingest"))
	w.open()
	status, err = w.Blobs(s).Status(bg, "r")
	if err != nil || status.Offset != 0 {
		t.Errorf("%v, %v", status, err)
	}
	w.must(w.Sweep(bg))
	if _, err = w.Blobs(s).Status(bg, "r"); result(err) != "not_found" {
		t.Error(err)
	}
}

func TestCommitIsCancelled(t *testing.T) {
	w := newWorld(t)
	s := Scope{Namespace: "ns"}
	writer, err := w.Blobs(s).Writer(bg, "r", content.Expect{})
	w.must(err)
	w.must(second(writer.Write([]byte("x"))))
	unlock, err := w.lanes.lock(bg, digest.FromString("x").String())
	w.must(err)
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if err := writer.Commit(ctx, 0, "", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	unlock()
	w.must(writer.Commit(bg, 0, "", nil))
}
