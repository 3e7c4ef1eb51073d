package logs

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// begun is when the first line of a test's log was written; each later one came a
// second after the one before.
var begun = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// line is an entry as a shim writes it.
func line(second int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", begun.Add(time.Duration(second)*time.Second).Format("2006-01-02T15:04:05.000000000Z07:00"), stream, tag, text)
}

// numbered are entries from one to another.
func numbered(from, to int) string {
	var out strings.Builder
	for i := from; i < to; i++ {
		out.WriteString(line(i, "stdout", "F", fmt.Sprintf("line %d", i)))
	}
	return out.String()
}

// rotatedLog prepares a log and writes its files, the oldest first.
func rotatedLog(t *testing.T, s *Store, id string, files ...string) (path string) {
	t.Helper()
	uri, err := s.Prepare("ns", id, Options{})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "log" || u.Query().Get("format") != "cri" {
		t.Fatalf("%q, %v", uri, err)
	}
	for i, text := range files {
		if i > 0 {
			rotate(t, u.Path)
		}
		if err := os.WriteFile(u.Path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return u.Path
}

// rotate renames the files of a log as a shim does that keeps four.
func rotate(t *testing.T, path string) {
	t.Helper()
	for i := 3; i > 0; i-- {
		from := path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", path, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// read reads a log to its end.
func read(t *testing.T, s *Store, id string, o ReadOptions) (got string, last Batch) {
	t.Helper()
	err := s.Read(t.Context(), "ns", id, o, func(b Batch) error {
		got += text(b)
		b.Entries = nil
		last = Batch{Position: b.Position, Lost: last.Lost || b.Lost}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, last
}

// plain takes the times away again.
func plain(entries string) string {
	var out strings.Builder
	for l := range strings.Lines(entries) {
		out.Write(parseEntry([]byte(l)).Data)
	}
	return out.String()
}

func TestReadAcrossRotations(t *testing.T) {
	s, _ := open(t)
	files := []string{numbered(0, 500), numbered(500, 900), numbered(900, 1000)}
	rotatedLog(t, s, "c1", files...)
	all := plain(strings.Join(files, ""))
	if got, _ := read(t, s, "c1", ReadOptions{Tail: -1}); got != all {
		t.Errorf("%d bytes, want %d", len(got), len(all))
	}
	for _, lines := range []int{0, 1, 99, 100, 101, 500, 501, 999, 1000, 5000} {
		want := plain(numbered(max(0, 1000-lines), 1000))
		if got, _ := read(t, s, "c1", ReadOptions{Tail: int64(lines)}); got != want {
			t.Errorf("tail %d: %d bytes, want %d: begins with %.20q", lines, len(got), len(want), got)
		}
	}
	since, until := begun.Add(450*time.Second), begun.Add(950*time.Second)
	if got, _ := read(t, s, "c1", ReadOptions{Tail: -1, Since: since, Until: until}); got != plain(numbered(450, 951)) {
		t.Errorf("since and until: %d bytes", len(got))
	}
	if got, _ := read(t, s, "c1", ReadOptions{Tail: 10, Since: since}); got != plain(numbered(990, 1000)) {
		t.Errorf("tail and since: %q", got)
	}
}

// TestTailPartial counts lines, not entries.
func TestTailPartial(t *testing.T) {
	s, _ := open(t)
	rotatedLog(t, s, "c1", line(0, "stdout", "F", "one")+line(1, "stdout", "P", "tw"), line(2, "stdout", "F", "o")+line(3, "stderr", "P", "e"))
	for lines, want := range []string{"", "e", "two\ne", "one\ntwo\ne", "one\ntwo\ne"} {
		if got, _ := read(t, s, "c1", ReadOptions{Tail: int64(lines)}); got != want {
			t.Errorf("tail %d: %q, want %q", lines, got, want)
		}
	}
}

// TestTailPlain counts lines of a log from before there were entries.
func TestTailPlain(t *testing.T) {
	s, _ := open(t)
	uri := prepare(t, s, "ns", "c1")
	u, _ := url.Parse(uri)
	write(t, uri, "one\ntw")
	rotate(t, u.Path)
	if err := os.WriteFile(u.Path, []byte("o\nthree"), 0o600); err != nil {
		t.Fatal(err)
	}
	for lines, want := range []string{"", "three", "two\nthree", "one\ntwo\nthree", "one\ntwo\nthree"} {
		if got, _ := read(t, s, "c1", ReadOptions{Tail: int64(lines)}); got != want {
			t.Errorf("tail %d: %q, want %q", lines, got, want)
		}
	}
	err := s.Read(t.Context(), "ns", "c1", ReadOptions{Since: begun}, nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no times") {
		t.Errorf("since: %v", err)
	}
}

// TestReadGoesOn reads on from every place at which an earlier read may have been
// cut off, across rotations in between: nothing is missing or comes twice.
func TestReadGoesOn(t *testing.T) {
	s, _ := open(t)
	path := rotatedLog(t, s, "c1", numbered(0, 3000), numbered(3000, 9000), numbered(9000, 20000))
	var positions, heads []string
	got := ""
	err := s.Read(t.Context(), "ns", "c1", ReadOptions{Tail: -1}, func(b Batch) error {
		got += text(b)
		positions, heads = append(positions, b.Position), append(heads, got)
		return nil
	})
	if err != nil || len(positions) < 4 {
		t.Fatalf("%d batches, %v", len(positions), err)
	}
	rotate(t, path)
	if err := os.WriteFile(path, []byte(numbered(20000, 20010)), 0o600); err != nil {
		t.Fatal(err)
	}
	all := plain(numbered(0, 20010))
	for i := range positions {
		rest, last := read(t, s, "c1", ReadOptions{From: positions[i], Tail: 3})
		if heads[i]+rest != all || last.Lost {
			t.Errorf("from %s: %d and %d bytes, want %d; lost %v", positions[i], len(heads[i]), len(rest), len(all), last.Lost)
		}
	}
	// Once the file is gone, what is left is read, and something is lost.
	rotate(t, path)
	if err := os.WriteFile(path, []byte(numbered(20010, 20020)), 0o600); err != nil {
		t.Fatal(err)
	}
	rest, last := read(t, s, "c1", ReadOptions{From: positions[0]})
	if !last.Lost || rest != plain(numbered(3000, 20020)) {
		t.Errorf("lost %v, %d bytes", last.Lost, len(rest))
	}
	for _, bad := range []string{"x", "1.2", "1.2.-3", "1.2.3.4"} {
		if err := s.Read(t.Context(), "ns", "c1", ReadOptions{From: bad}, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestFollowAcrossRotations follows a log that is rotated quickly while it is
// written.
func TestFollowAcrossRotations(t *testing.T) {
	s, _ := open(t)
	path := rotatedLog(t, s, "c1", "")
	over := make(chan struct{})
	got := make(chan string, 1<<16)
	done := make(chan error, 1)
	go func() {
		done <- s.Read(t.Context(), "ns", "c1", ReadOptions{Tail: -1, Ended: over}, func(b Batch) error {
			if b.Lost {
				return errors.New("lost")
			}
			got <- text(b)
			return nil
		})
	}()
	var all string
	for i := range 60 {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		entries := numbered(10*i, 10*i+10)
		for _, half := range []string{entries[:len(entries)/2+3], entries[len(entries)/2+3:]} {
			if _, err := f.WriteString(half); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if i%3 == 2 { // the reader has seen what will be the third file before it goes
			for want := plain(numbered(0, 10*i+10)); len(all) < len(want); {
				select {
				case more := <-got:
					all += more
				case err := <-done:
					t.Fatal(err)
				case <-time.After(10 * time.Second):
					t.Fatalf("%d bytes of %d", len(all), len(want))
				}
			}
		}
		rotate(t, path)
	}
	if err := os.WriteFile(path, []byte(line(600, "stdout", "F", "last")[:43]), 0o600); err != nil {
		t.Fatal(err)
	}
	close(over)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(got)
	for more := range got {
		all += more
	}
	if want := plain(numbered(0, 600)) + "las"; all != want {
		t.Errorf("%d bytes, want %d; ends with %q", len(all), len(want), all[max(0, len(all)-20):])
	}
}

// TestPrepareKeepsOptions has the first Prepare decide.
func TestPrepareKeepsOptions(t *testing.T) {
	s, dir := open(t)
	for _, bad := range []Options{{MaxSize: 3}, {MaxFiles: -1}, {MaxFiles: 1 << 20}, {Plain: true, Input: true}} {
		if _, err := s.Prepare("ns", "bad", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	uri, err := s.Prepare("ns", "c1", Options{MaxSize: 1 << 20, MaxFiles: 2, Input: true})
	if want := "log://" + filepath.ToSlash(strings.ReplaceAll(dir, " ", "%20")) + "/ns/c1/output.log?format=cri&input=true&max-files=2&max-size=1048576"; err != nil || uri != want {
		t.Errorf("%q, %v, want %q", uri, err, want)
	}
	if again, err := s.Prepare("ns", "c1", Options{}); err != nil || again != uri {
		t.Errorf("%q, %v", again, err)
	}
	// A log from before there were options stays plain.
	if err := os.Remove(filepath.Join(dir, "ns", "c1", OptionsFile)); err != nil {
		t.Fatal(err)
	}
	if old, err := s.Prepare("ns", "c1", Options{}); err != nil || !strings.HasPrefix(old, "file://") {
		t.Errorf("%q, %v", old, err)
	}
}

// TestRemoveTakesRotatedFiles leaves nothing of a log.
func TestRemoveTakesRotatedFiles(t *testing.T) {
	s, dir := open(t)
	rotatedLog(t, s, "c1", "a\n", "b\n", "c\n")
	none := func(context.Context, string, string) (bool, error) { return false, nil }
	if err := s.Remove(t.Context(), "ns", "c1", none); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// FuzzParseEntry gives every byte of a line back that is not its head.
func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(line(1, "stdout", "F", "x")))
	f.Add([]byte(line(1, "stderr", "P", "")))
	f.Add([]byte("2026-01-02T03:04:05Z stdout X y\n"))
	f.Fuzz(func(t *testing.T, l []byte) {
		e := parseEntry(l)
		if e.Time.IsZero() && !e.Stderr && len(e.Data) != len(l) && !strings.HasPrefix(string(l), "0001-01-01") {
			t.Errorf("%q became %q", l, e.Data)
		}
		if !strings.Contains(string(l), string(e.Data)) {
			t.Errorf("%q became %q", l, e.Data)
		}
	})
}
