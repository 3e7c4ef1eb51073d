package logs

import (
	"bytes"
	"time"
)

// Entry is part of what one stream wrote.
type Entry struct {
	Time   time.Time // zero: the log does not tell
	Stderr bool
	// Data are the bytes, a newline included if there was one. Without one the
	// stream's next entry goes on with the line.
	Data []byte
}

// headMax is how long the beginning of an entry can be, up to its line: a time,
// "stdout", a tag, three spaces.
const headMax = 64

// parseEntry takes a line of a log apart, with its newline if it has one. A line
// that is no entry is given as it is. The data are part of the line.
func parseEntry(line []byte) Entry {
	at, stderr, partial, head := parseHead(line)
	if head == 0 {
		return Entry{Data: line}
	}
	data := line[head:]
	if partial {
		data = bytes.TrimSuffix(data, []byte("\n"))
	}
	return Entry{Time: at, Stderr: stderr, Data: data}
}

// parseHead reads the beginning of an entry: TIME STREAM F|P, each followed by a
// space. head is how long that is; 0: it is none.
func parseHead(line []byte) (at time.Time, stderr, partial bool, head int) {
	line = line[:min(len(line), headMax)]
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return at, false, false, 0
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return at, false, false, 0
	}
	head = len(stamp) + len(" stdout F ")
	switch {
	case bytes.HasPrefix(rest, []byte("stdout F ")):
	case bytes.HasPrefix(rest, []byte("stdout P ")):
		partial = true
	case bytes.HasPrefix(rest, []byte("stderr F ")):
		stderr = true
	case bytes.HasPrefix(rest, []byte("stderr P ")):
		stderr, partial = true, true
	default:
		return time.Time{}, false, false, 0
	}
	return at, stderr, partial, head
}
