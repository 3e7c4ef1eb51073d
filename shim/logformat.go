package shim

import (
	"bytes"
	"sync"
	"time"
	"unicode/utf8"
)

// logFormat is how output stands in a log.
type logFormat uint8

const (
	logCRI  logFormat = iota // TIME STREAM F|P LINE
	logJSON                  // {"time":TIME,"stream":STREAM,"log":LINE}
	logRaw                   // the bytes as they are
)

// logFormats are the formats by name.
var logFormats = map[string]logFormat{"cri": logCRI, "json": logJSON, "raw": logRaw}

// maxEntry is how much of a line one entry has, in bytes. A longer line becomes
// several entries, each but the last partial, as Kubernetes has it.
const maxEntry = 16 << 10

// partialTime is how long the beginning of a line waits for the rest before it
// becomes an entry of its own.
const partialTime = 100 * time.Millisecond

// entryBuffers are for entries. A stream holds one only while it makes some.
var entryBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 96<<10); return &b }}

// Entries are written when there are entriesFull bytes of them. A buffer that has
// grown beyond maxEntries, as JSON may take six bytes for one, is not kept.
const (
	entriesFull = 64 << 10
	maxEntries  = 256 << 10
)

// logTime is the format of times in a log: RFC 3339 with all nanoseconds, so that
// entries are as long as each other and sort.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// formatter makes entries of one stream.
type formatter struct {
	file   *logFile
	stream string // stdout or stderr
	now    func() time.Time

	entries []byte // that are not written yet
	of      int    // bytes of output in them
	time    []byte // formatted
}

// whole writes the complete lines of data to the log, and of what follows the
// last line as much as makes entries. It tells how many bytes at the end of data
// are left for the next time, fewer than maxEntry.
func (f *formatter) whole(data []byte) (left int) {
	return f.format(data, false)
}

// rest writes everything, with a partial entry at the end.
func (f *formatter) rest(data []byte) {
	f.format(data, true)
}

func (f *formatter) format(data []byte, all bool) (left int) {
	if f.file.o.format == logRaw {
		f.file.write(data, len(data), f.now())
		return 0
	}
	buffer := entryBuffers.Get().(*[]byte)
	f.entries, f.of = (*buffer)[:0], 0
	now := f.now()
	f.time = now.UTC().AppendFormat(f.time[:0], logTime)
	for len(data) > 0 {
		n, partial := nextEntry(data, f.file.o.format == logJSON)
		if partial && n == len(data) && n < maxEntry && !all {
			break
		}
		f.add(data[:n], partial)
		data = data[n:]
		if len(f.entries) > entriesFull {
			f.flush(now)
		}
	}
	f.flush(now)
	*buffer = f.entries[:0]
	if cap(*buffer) <= maxEntries {
		entryBuffers.Put(buffer)
	}
	f.entries = nil
	return len(data)
}

// nextEntry tells how much of data its first entry has, its newline included, and
// whether that is not the end of a line. Text is not cut within a character.
func nextEntry(data []byte, text bool) (n int, partial bool) {
	head := data[:min(len(data), maxEntry+1)]
	if i := bytes.IndexByte(head, '\n'); i >= 0 {
		return i + 1, false
	}
	n = min(len(data), maxEntry)
	if text && len(data) >= maxEntry {
		for back := 1; back < utf8.UTFMax; back++ {
			if r := data[n-back]; utf8.RuneStart(r) {
				if !utf8.FullRune(data[n-back : n]) {
					n -= back
				}
				break
			}
		}
	}
	return n, true
}

// add makes an entry of a line, or of a part of one that has no newline.
func (f *formatter) add(line []byte, partial bool) {
	e := f.entries
	if f.file.o.format == logJSON {
		e = append(append(e, `{"time":"`...), f.time...)
		e = append(append(e, `","stream":"`...), f.stream...)
		e = append(e, `","log":"`...)
		e = appendJSON(e, line)
		e = append(e, "\"}\n"...)
	} else {
		e = append(append(e, f.time...), ' ')
		e = append(e, f.stream...)
		if partial {
			e = append(append(append(e, " P "...), line...), '\n')
		} else {
			e = append(append(e, " F "...), line...)
		}
	}
	f.entries = e
	f.of += len(line)
}

// flush writes the entries.
func (f *formatter) flush(now time.Time) {
	if len(f.entries) > 0 {
		f.file.write(f.entries, f.of, now)
	}
	f.entries, f.of = f.entries[:0], 0
}

const hexDigits = "0123456789abcdef"

// plainJSON are the bytes that stand for themselves in a JSON string.
var plainJSON = func() (plain [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// appendJSON appends text as the inside of a JSON string. Bytes that are no text
// become U+FFFD, as JSON has nothing else for them.
func appendJSON(out, text []byte) []byte {
	start := 0
	for i := 0; i < len(text); {
		if plainJSON[text[i]] {
			i++
			continue
		}
		size := 1
		if text[i] >= utf8.RuneSelf {
			var r rune
			if r, size = utf8.DecodeRune(text[i:]); r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		out = append(out, text[start:i]...)
		out = appendEscaped(out, text[i])
		i += size
		start = i
	}
	return append(out, text[start:]...)
}

// appendEscaped appends a byte that does not stand for itself.
func appendEscaped(out []byte, c byte) []byte {
	switch {
	case c >= utf8.RuneSelf:
		return append(out, "\ufffd"...)
	case c == '"' || c == '\\':
		return append(out, '\\', c)
	case c == '\n':
		return append(out, `\n`...)
	case c == '\r':
		return append(out, `\r`...)
	case c == '\t':
		return append(out, `\t`...)
	}
	return append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}
