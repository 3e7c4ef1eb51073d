package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// logStreams opens streams that go to a log, and starts them; the container's
// ends are returned.
func logStreams(t *testing.T, uri string, log *slog.Logger) (s *streams, stdout, stderr *os.File) {
	t.Helper()
	s, err := openStreams(place{dir: t.TempDir(), log: log}, streamPaths{stdout: uri, stderr: uri})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	var ends [2]*os.File
	for i, child := range []*os.File{s.child.Out, s.child.Err} {
		if ends[i], err = duplicate(child); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	s.start()
	return s, ends[0], ends[1]
}

func write(t *testing.T, f *os.File, text string) {
	t.Helper()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// finish ends the container's output.
func finish(t *testing.T, s *streams, ends ...*os.File) {
	t.Helper()
	for _, end := range ends {
		if err := end.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !s.drain() {
		t.Error("not drained")
	}
}

var criLine = regexp.MustCompile(`^(\S+) (stdout|stderr) ([FP]) (.*)$`)

// uncri takes a log of format cri apart into what each stream had, and checks its
// times.
func uncri(t *testing.T, log string) map[string]string {
	t.Helper()
	got := map[string]string{}
	last := map[string]time.Time{}
	for line := range strings.Lines(log) {
		m := criLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("no entry: %q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil || at.Before(last[m[2]]) {
			t.Fatalf("%q: after %s, %v", line, last[m[2]], err)
		}
		last[m[2]] = at
		got[m[2]] += m[4]
		if m[3] == "F" {
			got[m[2]] += "\n"
		}
		if len(m[4]) > maxEntry {
			t.Errorf("an entry of %d bytes", len(m[4]))
		}
	}
	return got
}

// TestLogCRI has lines of all sorts, in pieces, and wants them back.
func TestLogCRI(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "a", "b", "log")
	s, stdout, stderr := logStreams(t, "log://"+path, quietLog())
	want := map[string]string{
		"stdout": "one\n\n" + strings.Repeat("x", 100_000) + "\nend without newline",
		"stderr": strings.Repeat("a line on stderr\n", 20_000) + strings.Repeat("y", maxEntry) + "\n" + strings.Repeat("z", maxEntry-1) + "\n",
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = stderr.WriteString(want["stderr"])
	}()
	for i := 0; i < len(want["stdout"]); i += 7777 {
		write(t, stdout, want["stdout"][i:min(i+7777, len(want["stdout"]))])
	}
	<-done
	finish(t, s, stdout, stderr)
	got := uncri(t, readFile(t, path))
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %d bytes, want %d", name, len(got[name]), len(want[name]))
		}
	}
	for name, mode := range map[string]os.FileMode{path: 0o640, filepath.Dir(path): 0o755} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// TestLogPartialLine wants the beginning of a line soon, and its end as another
// entry; but a line that is written in pieces at once to be one.
func TestLogPartialLine(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	s, stdout, stderr := logStreams(t, "log://"+path+"?format=cri", quietLog())
	write(t, stdout, "name: ")
	eventually(t, "the prompt is there", func() bool { return strings.HasSuffix(readFile(t, path), " stdout P name: \n") })
	write(t, stdout, "joe\n")
	eventually(t, "the rest is there", func() bool { return strings.HasSuffix(readFile(t, path), " stdout F joe\n") })
	for _, piece := range []string{"in ", "three ", "pieces\n"} {
		write(t, stderr, piece)
	}
	eventually(t, "the line is there", func() bool { return strings.HasSuffix(readFile(t, path), "pieces\n") })
	if !s.settle() {
		t.Error("not settled")
	}
	finish(t, s, stdout, stderr)
	if got := uncri(t, readFile(t, path)); got["stdout"] != "name: joe\n" || got["stderr"] != "in three pieces\n" {
		t.Errorf("%q", got)
	}
}

// TestLogSettlesPartialLine has a line without an end, and a writer that stays:
// the exit waits for the entry.
func TestLogSettlesPartialLine(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	s, stdout, _ := logStreams(t, "log://"+path, quietLog())
	write(t, stdout, "last words")
	if !s.settle() {
		t.Error("not settled")
	}
	if got := readFile(t, path); !strings.HasSuffix(got, " stdout P last words\n") {
		t.Errorf("%q", got)
	}
	s.close()
}

// TestLogJSON reads every line as JSON.
func TestLogJSON(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	s, stdout, stderr := logStreams(t, "log://"+path+"?format=json", quietLog())
	text := "plain\n\"quoted\" \\ \t\x01\x7f é 日本 \U0001F600\n" + strings.Repeat("é", 20_000) + "\nend"
	write(t, stdout, text)
	write(t, stderr, "not \xff text\n")
	finish(t, s, stdout, stderr)
	got := map[string]string{}
	for line := range strings.Lines(readFile(t, path)) {
		var entry struct{ Time, Stream, Log string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339Nano, entry.Time); err != nil {
			t.Error(err)
		}
		got[entry.Stream] += entry.Log
	}
	if got["stdout"] != text || got["stderr"] != "not \ufffd text\n" {
		t.Errorf("%.80q", got)
	}
}

// TestLogRaw wants the bytes as they are, and after a restart more of them
// behind.
func TestLogRaw(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	data := randomBytes(t, 3<<20)
	for range 2 {
		s, stdout, stderr := logStreams(t, "log://"+path+"?format=raw&max-size=0", quietLog())
		if _, err := stdout.Write(data); err != nil {
			t.Fatal(err)
		}
		finish(t, s, stdout, stderr)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, append(data, data...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// logFiles gives what is in a log's files, the oldest first.
func logFiles(t *testing.T, path string, most int) (files []string) {
	t.Helper()
	for i := most; i >= 0; i-- {
		name := path
		if i > 0 {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		if data, err := os.ReadFile(name); err == nil {
			files = append(files, string(data))
		}
	}
	return files
}

// TestLogRotation keeps as many files as asked for, none too large, no line torn,
// and the last ones.
func TestLogRotation(t *testing.T) {
	leak.Check(t)
	for _, format := range []string{"cri", "json", "raw"} {
		path := filepath.Join(t.TempDir(), "log")
		s, stdout, stderr := logStreams(t, "log://"+path+"?format="+format+"&max-size=4096&max-files=3", quietLog())
		const lines = 3000
		for i := range lines {
			write(t, stdout, fmt.Sprintf("line %d\n", i))
		}
		finish(t, s, stdout, stderr)
		files := logFiles(t, path, 10)
		if len(files) != 3 {
			t.Fatalf("%s: %d files", format, len(files))
		}
		for i, file := range files {
			if len(file) > 4096 || i < 2 && len(file) < 4000 {
				t.Errorf("%s: a file of %d bytes", format, len(file))
			}
			if format != "raw" && !strings.HasSuffix(file, "\n") {
				t.Errorf("%s: a torn line at %q", format, file[len(file)-20:])
			}
		}
		all := strings.Join(files, "")
		first := regexp.MustCompile(`line (\d+)`).FindAllStringSubmatch(all, -1)[1][1]
		var next int
		if _, err := fmt.Sscan(first, &next); err != nil {
			t.Fatal(err)
		}
		for ; next < lines; next++ {
			if !strings.Contains(all, fmt.Sprintf("line %d", next)) {
				t.Fatalf("%s: line %d is missing", format, next)
			}
		}
	}
}

// TestLogOneFile begins anew when it is full.
func TestLogOneFile(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "log")
	s, stdout, stderr := logStreams(t, "log://"+path+"?max-size=1024&max-files=1", quietLog())
	for i := range 200 {
		write(t, stdout, fmt.Sprintf("line %d\n", i))
	}
	finish(t, s, stdout, stderr)
	if files := logFiles(t, path, 3); len(files) != 1 || len(files[0]) > 1024 || !strings.HasSuffix(files[0], "line 199\n") {
		t.Errorf("%q", files)
	}
}

// TestLogReopen follows a file that somebody else has renamed, when it is told to
// and when it is not.
func TestLogReopen(t *testing.T) {
	leak.Check(t)
	for _, told := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "log")
		s, stdout, stderr := logStreams(t, "log://"+path, quietLog())
		write(t, stdout, "before\n")
		eventually(t, "before", func() bool { return strings.HasSuffix(readFile(t, path), "before\n") })
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		if told {
			if err := s.logFile.reopen(); err != nil {
				t.Fatal(err)
			}
			if readFile(t, path) != "" {
				t.Error("no new file")
			}
		}
		written := 0
		eventually(t, "the new file", func() bool {
			write(t, stdout, "after\n")
			written++
			time.Sleep(10 * time.Millisecond)
			data, err := os.ReadFile(path)
			return err == nil && strings.HasSuffix(string(data), "after\n")
		})
		finish(t, s, stdout, stderr)
		old, now := uncri(t, readFile(t, path+".old"))["stdout"], uncri(t, readFile(t, path))["stdout"]
		if want := "before\n" + strings.Repeat("after\n", written); old+now != want {
			t.Errorf("told %v: %q and %q, want %q", told, old, now, want)
		}
		if told && old != "before\n" {
			t.Errorf("%q in the old file", old)
		}
	}
}

// TestLogFullDisk has a disk that takes nothing for a while: the writer does not
// notice, what was lost is counted, and what comes later is there whole.
func TestLogFullDisk(t *testing.T) {
	leak.Check(t)
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, format := range []string{"cri", "raw"} {
		disk := t.TempDir()
		if err := unix.Mount("disk", disk, "tmpfs", 0, "size=64k"); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		hog := filepath.Join(disk, "hog")
		path := filepath.Join(disk, "log")
		notes := &lines{}
		s, stdout, stderr := logStreams(t, "log://"+path+"?format="+format, notes.log())
		write(t, stdout, "before\n")
		eventually(t, "before", func() bool { return strings.HasSuffix(readFile(t, path), "before\n") })
		_ = os.WriteFile(hog, make([]byte, 64<<10), 0o600) // to the last byte
		lines := strings.Repeat("0123456789abcde\n", 64<<10)
		write(t, stdout, lines) // a megabyte
		if !s.settle() {
			t.Error("not settled")
		}
		if err := os.Remove(hog); err != nil {
			t.Fatal(err)
		}
		write(t, stdout, "after\n")
		finish(t, s, stdout, stderr)
		log := readFile(t, path)
		if format == "cri" {
			log = uncri(t, log)["stdout"]
		}
		if !strings.HasPrefix(log, "before\n") || !strings.HasSuffix(log, "after\n") {
			t.Errorf("%s: %d bytes, %.20q to %q", format, len(log), log, log[max(0, len(log)-20):])
		}
		lost := len("before\nafter\n") + len(lines) - len(log)
		text := notes.text()
		if strings.Count(text, "output is being lost") < 1 || strings.Count(text, "\n") > 8 {
			t.Errorf("%s: %s", format, text)
		}
		counted := 0
		for _, m := range regexp.MustCompile(`lost_bytes=(\d+)`).FindAllStringSubmatch(text, -1) {
			var n int
			_, _ = fmt.Sscan(m[1], &n)
			counted += n
		}
		if format == "raw" && counted != lost || counted < lost-64<<10 || counted > lost+64<<10 {
			t.Errorf("%s: %d bytes counted as lost, %d are", format, counted, lost)
		}
	}
}
