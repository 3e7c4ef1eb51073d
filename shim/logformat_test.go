package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
)

// TestLogOptions refuses what is no option, by name.
func TestLogOptions(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	for query, want := range map[string]string{
		"format=xml": `format "xml"`, "max-size=x": `max-size "x"`, "max-size=5": `max-size "5"`, "max-files=0": `max-files "0"`,
		"color=red": `option "color"`, "input=maybe": `input "maybe"`, "format=%zz": "%zz",
	} {
		uri := "log://" + dir + "/log?" + query
		s, err := openStreams(place{dir: dir, log: quietLog()}, streamPaths{stdout: uri})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
		if err == nil {
			s.close()
		}
	}
	if _, err := openStreams(place{dir: dir, log: quietLog()}, streamPaths{stdout: "log://" + dir}); err == nil {
		t.Error("a directory is a log")
	}
}

// FuzzFormat wants the text of any bytes back from its entries, however they are
// cut.
func FuzzFormat(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(1))
	f.Add(bytes.Repeat([]byte("é"), 10_000), uint16(100))
	f.Add([]byte("\xff\xfe\n\n"), uint16(3))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		path := filepath.Join(dir, "log")
		_ = os.Remove(path)
		file, err := openLog(path, logOptions{files: 1}, quietLog())
		if err != nil {
			t.Fatal(err)
		}
		file.use()
		defer file.release()
		form := &formatter{file: file, stream: "stdout", now: time.Now}
		var kept []byte
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(cut)+1)
			kept = append(kept, rest[:n]...)
			rest = rest[n:]
			left := form.whole(kept)
			kept = append([]byte(nil), kept[len(kept)-left:]...)
			if left >= maxEntry {
				t.Fatalf("%d bytes are kept", left)
			}
		}
		form.rest(kept)
		if got := uncri(t, readFile(t, path))["stdout"]; got != string(data) {
			t.Errorf("%q, want %q", got, data)
		}
	})
}

// BenchmarkLog writes lines to a log.
func BenchmarkLog(b *testing.B) {
	for _, format := range []string{"cri", "json", "raw"} {
		b.Run(format, func(b *testing.B) {
			s, err := openStreams(place{dir: b.TempDir(), log: quietLog()}, streamPaths{stdout: "log://" + b.TempDir() + "/log?format=" + format})
			if err != nil {
				b.Fatal(err)
			}
			defer s.close()
			child, err := duplicate(s.child.Out)
			if err != nil {
				b.Fatal(err)
			}
			defer child.Close()
			s.start()
			lines := bytes.Repeat([]byte("a line of output that is not very long, and not very short, 80 in all........\n"), 800)
			b.SetBytes(int64(len(lines)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := child.Write(lines); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
